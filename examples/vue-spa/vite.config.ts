import vue from "@vitejs/plugin-vue";
import { defineConfig, loadEnv, type Plugin } from "vite";

const here = { host: "127.0.0.1", port: 5173, strictPort: true };

export default defineConfig(({ mode }) => ({
  plugins: [vue(), contentSecurityPolicy(loadEnv(mode, import.meta.dirname))],
  // 127.0.0.1 and not localhost: to a browser those are two sites, and the session's cookie belongs to one.
  // Another port would be another origin, which the API does not know.
  server: here,
  preview: here,
  // Everything is a file of its own. The polyfill is for browsers that are too old for this app anyway.
  build: { assetsInlineLimit: 0, modulePreload: { polyfill: false } },
}));

/** What the built page may load and call. The development server's page has none: it needs inline code. */
function contentSecurityPolicy(env: Record<string, string>): Plugin {
  const policy = [
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    `connect-src 'self' ${env.VITE_API_URL}`,
    `img-src 'self' https://*.scdn.co https://*.spotifycdn.com ${env.VITE_IMAGE_HOSTS}`,
    "base-uri 'none'",
    "form-action 'none'", // forms are sent by script, never by the browser itself
  ];
  const content = policy.map((directive) => directive.trim()).join("; ");
  return {
    name: "content-security-policy",
    apply: "build",
    transformIndexHtml: () => [
      { tag: "meta", attrs: { "http-equiv": "Content-Security-Policy", content }, injectTo: "head-prepend" },
    ],
  };
}
