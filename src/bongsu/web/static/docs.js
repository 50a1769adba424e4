// Swagger UI over the OpenAPI document beside this page, with nothing asked of any other origin.
"use strict";

window.ui = window.SwaggerUIBundle({
  url: new URL("openapi.json", document.baseURI).href,
  dom_id: "#docs",
  deepLinking: true,
  displayRequestDuration: true,
  // The default sends our document's address to validator.swagger.io.
  validatorUrl: null,
});
