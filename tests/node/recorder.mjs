// Records what a library does with its calls. tests/clients/node_calls.py reads the outcomes.
//
// The last argument of the program is JSON: where the library sends its calls, the sandbox's items, and failures.

const { base_url, token, control_url, items, failures } = JSON.parse(process.argv.at(-1));
export { base_url as baseUrl, token, items };
export const tracks = ["track", "other_track", "third_track"].map((name) => `spotify:track:${items[name]}`);

const calls = [];
let responses = [];

// Record a response of the current call. Errors of Backline have a content type of their own.
export function addResponse(method, url, status, header) {
  responses.push([method, url, status, status < 400 ? header("content-type") : null, header("retry-after")]);
}

// Make a call. Returns its result, or null if it threw an error.
export async function record(method, label, call) {
  responses = [];
  const outcome = {};
  try {
    outcome.returned = (await call()) ?? null;
  } catch (error) {
    outcome.raised = [error.name, error.message, error.statusCode ?? null, error.body ?? null];
  }
  calls.push({ method, label, outcome: { ...outcome, responses: [...responses] } });
  return outcome.returned ?? null;
}

async function control(method, body) {
  const headers = { "Content-Type": "application/json" };
  await fetch(`${control_url}/faults`, { method, body: body && JSON.stringify(body), headers });
}

// Meet each failure with some calls, by name, then look at their effect.
export async function recordFailures(callsByName, effect) {
  for (const [failure, fault] of Object.entries(failures)) {
    await control("POST", { on: "api", times: null, ...fault });
    for (const [name, call] of Object.entries(callsByName)) await record(name, `${failure}, ${name}`, call);
    await control("DELETE");
    if (failure !== "rate limit") await record("effect", `${failure}, effect`, effect);
  }
}

// Print the outcomes, and the names of all methods of the library.
export function finish(methods) {
  console.log(JSON.stringify({ calls, methods: methods.filter((name) => !name.startsWith("_")) }));
}
