// The network between the clients and the deployment, as a TCP relay that can be cut.
import { connect, createServer } from 'node:net';

export class Line {
  /** A relay on a port of its own to `target`, such as http://127.0.0.1:8080. */
  static async to(target) {
    const line = new Line();
    const { hostname, port } = new URL(target);
    line._pairs = new Set();
    line._whole = true;
    line._server = createServer((near) => line._relay(near, connect(Number(port), hostname)));
    await new Promise((resolve) => line._server.listen(0, '127.0.0.1', resolve));
    line.url = `http://127.0.0.1:${line._server.address().port}`;
    return line;
  }

  /** Every connection ends at once, and new ones do until `mend`. */
  cut() {
    this._whole = false;
    for (const [near, far] of this._pairs) {
      near.destroy();
      far.destroy();
    }
  }

  mend() {
    this._whole = true;
  }

  close() {
    this.cut();
    this._server.close();
  }

  _relay(near, far) {
    const pair = [near, far];
    this._pairs.add(pair);
    for (const [side, other] of [[near, far], [far, near]]) {
      side.setNoDelay(true);
      side.on('error', () => {});  // a reset is an end, which 'close' tells
      side.on('close', () => {
        other.destroy();
        this._pairs.delete(pair);
      });
    }
    if (!this._whole) {
      near.destroy();
      return;
    }
    near.pipe(far);
    far.pipe(near);
  }
}
