// An upstream that believes the edge and nobody else: it verifies the identity token of every request.
//
//     EDGE=http://127.0.0.1:8080 ROUTE=reports PORT=9000 node upstream.mjs
//
// `ROUTE` is the route's name in the edge's `routes.toml`. Needs nothing but Node.js (20 or newer).

import { createPublicKey, verify as verifySignature } from "node:crypto";
import { createServer } from "node:http";

const ISSUER = "keyledger";
const FRESH_MS = 300_000;
// A token may name any key: so often the edge is asked for a key that is not known, however many such tokens come.
const ASK_AGAIN_MS = 1_000;
const LEEWAY_SECONDS = 30;

class Refused extends Error {}

// The edge's public keys, fetched when needed and kept. When the edge signs with another key (rotation), the first token
// that names it brings it in; a key that the edge no longer lists is forgotten within five minutes.
class Keys {
  #url;
  #keys = new Map();
  #asked = -Infinity;
  #asking = null;

  constructor(edge) {
    this.#url = `${edge}/.well-known/keyledger/jwks.json`;
  }

  async get(name) {
    const age = performance.now() - this.#asked;
    if (age > (this.#keys.has(name) ? FRESH_MS : ASK_AGAIN_MS)) {
      this.#asked = performance.now();
      this.#asking = this.#fetch();
    }
    await this.#asking;
    if (!this.#keys.has(name)) throw new Refused("no such key");
    return this.#keys.get(name);
  }

  async #fetch() {
    try {
      const answer = await fetch(this.#url, { signal: AbortSignal.timeout(3_000) });
      if (!answer.ok) return;
      const { keys } = await answer.json();
      const own = keys.filter((jwk) => jwk.kty === "OKP" && jwk.crv === "Ed25519" && jwk.kid);
      this.#keys = new Map(own.map((jwk) => [jwk.kid, createPublicKey({ key: jwk, format: "jwk" })]));
    } catch {
      // what is known stays good while the edge can't be asked
    }
  }
}

function decoded(part) {
  const found = JSON.parse(Buffer.from(part, "base64url").toString("utf8"));
  if (found === null || typeof found !== "object") throw new Refused("not an object");
  return found;
}

// The token's claims: `owner_id`, `key_id`, `permissions`, ... Throws when it is not good.
async function verify(token, keys, audience, now = Date.now() / 1000) {
  const parts = token.split(".");
  if (parts.length !== 3) throw new Refused("not a token");
  const [head, body, signature] = parts;
  const { alg, kid, crit } = decoded(head);
  // Never the algorithm that the token itself names.
  if (alg !== "EdDSA" || typeof kid !== "string" || crit !== undefined) throw new Refused("another kind of token");
  const key = await keys.get(kid);
  if (!verifySignature(null, Buffer.from(`${head}.${body}`), key, Buffer.from(signature, "base64url"))) {
    throw new Refused("not signed by the edge");
  }
  const claims = decoded(body);
  if (claims.iss !== ISSUER || claims.aud !== audience) throw new Refused("for somebody else");
  if (!(Number.isFinite(claims.exp) && claims.exp + LEEWAY_SECONDS > now)) throw new Refused("expired");
  if (!(Number.isFinite(claims.iat) && claims.iat - LEEWAY_SECONDS <= now)) throw new Refused("from the future");
  return claims;
}

const keys = new Keys(process.env.EDGE);
const audience = `route:${process.env.ROUTE}`;

createServer(async (request, response) => {
  const answer = (status, body) => {
    response.writeHead(status, { "Content-Type": "application/json" }).end(JSON.stringify(body));
  };
  try {
    // Repeated headers would be joined in `headers`: this counts them.
    const tokens = request.headersDistinct["keyledger-identity"] ?? [];
    if (tokens.length !== 1) throw new Refused("not exactly one token");
    const { owner_id, key_id, permissions } = await verify(tokens[0], keys, audience);
    answer(200, { owner_id, key_id, permissions });
  } catch {
    answer(401, { error: "no good identity" });
  }
}).listen(Number(process.env.PORT), "127.0.0.1");
