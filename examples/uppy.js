// An upload area for your page: Uppy's dashboard, sending with tus. Bundle it with esbuild or what you use:
// npm install @uppy/core @uppy/dashboard @uppy/tus esbuild && npx esbuild uppy.js --bundle --outfile=upload.js
// For pages of another origin than Bongsu's, add theirs to BONGSU_ALLOWED_ORIGINS.
import Uppy from '@uppy/core';
import Dashboard from '@uppy/dashboard';
import Tus from '@uppy/tus';

import '@uppy/core/css/style.min.css';
import '@uppy/dashboard/css/style.min.css';

/** @param {{target: string | Element, url: string, token?: string}} options where it goes, and where the files go */
window.uploadArea = ({ target, url, token }) =>
  new Uppy()
    .use(Dashboard, { inline: true, target })
    .use(Tus, {
      endpoint: `${url}/files/`,
      headers: token ? { Authorization: `Bearer ${token}` } : {},
      retryDelays: [0, 1000, 3000, 5000],
    });
