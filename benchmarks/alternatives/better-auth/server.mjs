// better-auth on MariaDB, with sessions in Redis, in several processes.
// Settings are passed as JSON in the environment variable BENCHMARK.
import cluster from "node:cluster";
import { createServer } from "node:http";
import { betterAuth } from "better-auth";
import { getMigrations } from "better-auth/db/migration";
import { toNodeHandler } from "better-auth/node";
import { genericOAuth } from "better-auth/plugins";
import Redis from "ioredis";
import { createPool } from "mysql2/promise";

const settings = JSON.parse(process.env.BENCHMARK);
const redis = new Redis(settings.redisSocket);

const spotify = {
  providerId: "spotify",
  clientId: settings.clientId,
  clientSecret: settings.clientSecret,
  authorizationUrl: `${settings.accountsUrl}/authorize`,
  tokenUrl: `${settings.accountsUrl}/api/token`,
  scopes: ["user-read-email", "streaming"],
  pkce: true,
  getUserInfo: async ({ accessToken }) => {
    const response = await fetch(`${settings.apiUrl}/me`, { headers: { Authorization: `Bearer ${accessToken}` } });
    const { id, display_name: name } = await response.json();
    return { id, name, email: settings.email, emailVerified: true };
  },
};

const auth = betterAuth({
  secret: settings.secret,
  baseURL: settings.url,
  database: createPool({ socketPath: settings.databaseSocket, user: "root", database: settings.database }),
  secondaryStorage: {
    get: (key) => redis.get(key),
    set: (key, value, ttl) => (ttl ? redis.set(key, value, "EX", ttl) : redis.set(key, value)),
    delete: (key) => redis.del(key),
    getAndDelete: (key) => redis.getdel(key),
    increment: async (key, ttl) => {
      const count = await redis.incr(key);
      if (count === 1 && ttl) await redis.expire(key, ttl);
      return count;
    },
  },
  emailAndPassword: { enabled: true },
  account: { accountLinking: { trustedProviders: ["spotify"], allowDifferentEmails: true } },
  rateLimit: { enabled: false },
  telemetry: { enabled: false },
  plugins: [genericOAuth({ config: [spotify] })],
});

if (cluster.isPrimary) {
  await (await getMigrations(auth.options)).runMigrations();
  for (let number = 0; number < settings.workers; number++) cluster.fork();
} else {
  createServer(toNodeHandler(auth)).listen(settings.port, "127.0.0.1");
}
