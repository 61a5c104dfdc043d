import vue from "@vitejs/plugin-vue";
import { defineConfig, loadEnv, type Plugin } from "vite";

const here = { host: "127.0.0.1", port: 5173, strictPort: true };

export default defineConfig(({ mode }) => ({
  plugins: [vue(), contentSecurityPolicy(loadEnv(mode, import.meta.dirname))],
  // Not localhost, which is another site to browsers, with other cookies. Another port would be another origin,
  // which the API does not allow.
  server: here,
  preview: here,
  // No inline assets (see the policy below), and no polyfill for browsers that are too old for this app.
  build: {
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    rolldownOptions: { checks: { bundlerTimings: false } }, // a busy machine is no reason for a warning
  },
}));

/** What the built page can load and call. The development server needs inline code, so it has no policy. */
function contentSecurityPolicy(env: Record<string, string>): Plugin {
  const policy = [
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    `connect-src 'self' ${env.VITE_API_URL}`,
    `img-src 'self' https://*.scdn.co https://*.spotifycdn.com ${env.VITE_IMAGE_HOSTS}`,
    "base-uri 'none'",
    "form-action 'none'", // scripts send all forms
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
