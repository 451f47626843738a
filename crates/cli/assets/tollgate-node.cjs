// Preloaded by `tollgate run` (NODE_OPTIONS=--require) into Node.js before 24.5, which ignores HTTPS_PROXY by itself.
// Sends fetch, http.request and https.request through the proxy in HTTPS_PROXY, by CONNECT.
'use strict';

(() => {
  const [major, minor] = process.versions.node.split('.').map(Number);
  const native = major > 24 || (major === 24 && minor >= 5) || (major === 22 && minor >= 21);
  const url = process.env.HTTPS_PROXY || process.env.https_proxy;
  if (native || !url) return;
  let proxy;
  try {
    proxy = new URL(url);
  } catch {
    return;
  }
  if (proxy.protocol !== 'http:') return;

  const net = require('node:net');
  const tls = require('node:tls');
  const http = require('node:http');
  const https = require('node:https');
  const proxyHost = proxy.hostname.replace(/^\[|\]$/g, '');
  const proxyPort = Number(proxy.port) || 80;
  const HEAD_LIMIT = 16384;

  // Opens a tunnel to host:port; calls back once, with an error or a socket that has nothing unread.
  function tunnel(host, port, done) {
    const socket = net.connect(proxyPort, proxyHost);
    let head = Buffer.alloc(0);
    const authority = net.isIPv6(host) ? `[${host}]:${port}` : `${host}:${port}`;
    const settle = (error) => {
      socket.off('data', onData).off('error', settle).off('close', onClose);
      if (error) socket.destroy();
      else socket.pause();
      done(error, error ? undefined : socket);
    };
    const onClose = () => settle(new Error(`the proxy closed the connection to ${authority}`));
    const onData = (chunk) => {
      head = Buffer.concat([head, chunk]);
      const end = head.indexOf('\r\n\r\n');
      if (end < 0) {
        if (head.length > HEAD_LIMIT) settle(new Error('the answer of the proxy is too long'));
        return;
      }
      const line = head.subarray(0, head.indexOf('\r\n')).toString('latin1');
      const status = Number(line.split(' ')[1]);
      if (!(status >= 200 && status < 300)) {
        const error = new Error(`the proxy refused the connection to ${authority}: ${line}`);
        error.statusCode = status;
        settle(error);
        return;
      }
      const rest = head.subarray(end + 4);
      settle();
      if (rest.length) socket.unshift(rest);
    };
    socket.on('data', onData).on('error', settle).on('close', onClose);
    socket.setNoDelay(true);
    socket.write(`CONNECT ${authority} HTTP/1.1\r\nHost: ${authority}\r\n\r\n`);
  }

  // A tunnel with TLS inside.
  function secure(options, done) {
    const host = options.hostname || options.host || 'localhost';
    tunnel(host, options.port || 443, (error, socket) => {
      if (error) return done(error);
      const servername = options.servername || (net.isIP(host) ? '' : host);
      const stream = tls.connect({ ...options, path: undefined, host, servername, socket });
      const onError = (failure) => {
        stream.off('secureConnect', onSecure);
        done(failure);
      };
      const onSecure = () => {
        stream.off('error', onError);
        done(null, stream);
      };
      stream.once('error', onError).once('secureConnect', onSecure);
    });
  }

  // http and https: every agent makes its connections here, unless it brings its own way.
  function reroute(agent, connect) {
    const direct = agent.prototype.createConnection;
    agent.prototype.createConnection = function createConnection(options, done) {
      const tunnelled =
        options !== null && typeof options === 'object' && typeof done === 'function' &&
        !options.socketPath && !options.socket;
      if (!tunnelled) return direct.apply(this, arguments);
      connect(options, done);
      return undefined;
    };
  }
  reroute(http.Agent, (options, done) =>
    tunnel(options.hostname || options.host || 'localhost', options.port || 80, done));
  reroute(https.Agent, secure);

  // fetch: the bundled undici does not export its Agent, but its global dispatcher is one. It exists once one of the lazy
  // globals has been touched.
  const DISPATCHER = Symbol.for('undici.globalDispatcher.1');
  try {
    void globalThis.Response;
    const Agent = globalThis[DISPATCHER]?.constructor;
    if (Agent?.name !== 'Agent') return;
    const dispatcher = new Agent({
      connect(options, done) {
        const host = options.hostname.replace(/^\[|\]$/g, '');
        if (options.protocol !== 'https:') return tunnel(host, options.port || 80, done);
        const servername = options.servername || undefined;
        return secure({ host, port: options.port || 443, servername, ALPNProtocols: ['http/1.1'] }, done);
      },
    });
    Object.defineProperty(globalThis, DISPATCHER, {
      value: dispatcher, writable: true, enumerable: false, configurable: false,
    });
  } catch {
    // An undici that works differently: fetch goes its own way, and everything else works.
  }
})();
