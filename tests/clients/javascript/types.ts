// Compiled only: the package's types, as an app uses them.
import { SpotifyApi } from "@spotify/web-api-ts-sdk";
import { ApiError, Backline, webApiSdk, type Problem, type Schemas, type User } from "backline";

export const backline = new Backline({ url: "https://api.example.com" });
export const spotify = new SpotifyApi(...webApiSdk(backline));

export const user: User = await backline.patch("/api/user", { body: { username: "ada" } });
export const sessions: Schemas["SessionsOut"] = await backline.get("/api/user/sessions");
export const nothing: null = await backline.put("/api/email-verification", { body: { token: "" } });
await backline.delete("/api/user/sessions/{session_id}", { path: { session_id: sessions.items[0].id } });
export const track = await backline.spotify.get<{ name: string } | null>("me/player/currently-playing");
export const problemOf = (error: unknown): Problem | undefined => (error instanceof ApiError ? error : undefined);

// @ts-expect-error: there is no such path
await backline.get("/api/users");
// @ts-expect-error: the path has no such method
await backline.post("/api/user/password");
// @ts-expect-error: the body lacks new_password
await backline.put("/api/user/password", { body: { current_password: "" } });
// @ts-expect-error: the path lacks session_id
await backline.delete("/api/user/sessions/{session_id}");
// @ts-expect-error: the result has no such member
export const other = sessions.others;
