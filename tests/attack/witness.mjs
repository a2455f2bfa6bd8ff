// Node's HTTP server, as lenient as it gets; writes down each request as it understood it, one JSON object a line.
import { appendFileSync } from "node:fs";
import { createServer } from "node:http";

const server = createServer({ insecureHTTPParser: true }, (request, response) => {
  const body = [];
  request.on("data", (data) => body.push(data));
  request.on("end", () => {
    const raw = request.rawHeaders;
    const seen = {
      method: request.method,
      target: request.url,
      path: decoded(new URL(request.url, "http://h").pathname),
      headers: raw.map((value, i) => [value.toLowerCase(), raw[i + 1]]).filter((_, i) => i % 2 === 0),
      body: Buffer.concat(body).toString("latin1"),
    };
    appendFileSync(process.env.WITNESS, JSON.stringify(seen) + "\n");
    response.writeHead(200, { "Content-Length": 2 });
    response.end("ok");
  });
});

function decoded(path) {
  try {
    return decodeURIComponent(path);
  } catch {
    return path;
  }
}

server.keepAliveTimeout = 60000;
server.listen(Number(process.env.PORT), "127.0.0.1");
