// Sends the calls of the SDK's test suite to BASE_URL, with TOKEN instead of any token of Spotify's.
const { BASE_URL, TOKEN, ACCOUNTS_URL } = process.env;
const originalFetch = globalThis.fetch;

globalThis.fetch = (input, init) => {
  const url = String(input).replace("https://api.spotify.com/v1", BASE_URL).replace("https://accounts.spotify.com", ACCOUNTS_URL);
  const options = { ...init, headers: { ...init?.headers } };
  // Access tokens of the sandbox begin like this. Others are sent unchanged.
  if (options.headers.Authorization?.startsWith("Bearer BQ")) options.headers.Authorization = `Bearer ${TOKEN}`;
  return originalFetch(url, options);
};
