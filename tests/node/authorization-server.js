// An OpenID provider (panva's oidc-provider) in the place of Spotify's accounts service. It rotates refresh tokens, and
// revokes the grant if one is used twice. Everyone who visits /authorize signs in as another person and consents.
// GET /_counts returns how many refreshes it has made, and how often it has rejected one.
import * as oidc from "oidc-provider";

const { PORT, CLIENT_ID, CLIENT_SECRET, REDIRECT_URI, SCOPES, LIFETIME } = process.env;
const counts = { refreshes: 0, reused: 0, rejected: 0 };

// The built-in one forgets all but 1,000 entries, and does not notice that two requests use a token at the same time.
class Adapter {
  static rows = new Map();

  constructor(model) {
    this.model = model;
  }

  async upsert(id, payload) {
    Adapter.rows.set(`${this.model}:${id}`, payload);
  }

  async find(id) {
    const row = Adapter.rows.get(`${this.model}:${id}`);
    return row && { ...row };
  }

  async findByUid(uid) {
    return [...Adapter.rows.values()].find((row) => row.uid === uid);
  }

  async consume(id) {
    const row = Adapter.rows.get(`${this.model}:${id}`);
    if (this.model === "RefreshToken" && row.consumed) counts.reused += 1;
    row.consumed = Math.floor(Date.now() / 1000);
  }

  async destroy(id) {
    Adapter.rows.delete(`${this.model}:${id}`);
  }

  async revokeByGrantId(grantId) {
    for (const [key, row] of Adapter.rows) if (row.grantId === grantId) Adapter.rows.delete(key);
  }
}

const provider = new oidc.Provider(`http://127.0.0.1:${PORT}`, {
  adapter: Adapter,
  clients: [
    {
      client_id: CLIENT_ID,
      client_secret: CLIENT_SECRET,
      redirect_uris: [REDIRECT_URI],
      grant_types: ["authorization_code", "refresh_token"],
    },
  ],
  cookies: { keys: ["not secret"] },
  features: { devInteractions: { enabled: false } },
  findAccount: async (_, id) => ({ accountId: id, claims: async () => ({ sub: id }) }),
  formats: { bitsOfOpaqueRandomness: 288 }, // tokens must not look like session ids or the tokens of the sandbox
  interactions: { url: (_, interaction) => `/interaction/${interaction.uid}` },
  issueRefreshToken: async () => true,
  pkce: { required: () => true },
  rotateRefreshToken: true,
  routes: { authorization: "/authorize", token: "/api/token" },
  scopes: SCOPES.split(" "),
  ttl: { AccessToken: Number(LIFETIME), Grant: 86400, Interaction: 600, RefreshToken: 86400, Session: 86400 },
});

async function consent(ctx) {
  const { params, uid } = await provider.interactionDetails(ctx.req, ctx.res);
  const grant = new provider.Grant({ accountId: uid, clientId: CLIENT_ID });
  grant.addOIDCScope(params.scope);
  const result = { login: { accountId: uid }, consent: { grantId: await grant.save() } };
  ctx.respond = false;
  await provider.interactionFinished(ctx.req, ctx.res, result);
}

provider.use(async (ctx, next) => {
  if (ctx.path === "/_counts") ctx.body = counts;
  else if (ctx.path.startsWith("/interaction/")) await consent(ctx);
  else await next();
});
provider.on("grant.success", (ctx) => {
  if (ctx.oidc.params.grant_type === "refresh_token") counts.refreshes += 1;
});
provider.on("grant.error", (_, error) => {
  counts.rejected += 1;
  if (error.error_detail === "refresh token already used") counts.reused += 1;
});
provider.listen(Number(PORT), "127.0.0.1");
