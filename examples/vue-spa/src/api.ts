/** The API client, and problems in words for people. */
import { ApiError, Backline, type Problem } from "backline";
import { messageFor } from "./messages";

/** The API's URL. It is in the page, so that one build works with any API: see README.md. */
const url = document.querySelector<HTMLMetaElement>('meta[name="api-url"]')?.content;

export const backline = new Backline({ url });

/** The problem of anything thrown. Errors of the app itself also go to the console. */
export function problemOf(error: unknown): Problem {
  if (error instanceof ApiError) {
    // 422 is about the fields of a form, which show their own errors.
    const slug = error.status === 422 ? "validation-error" : error.slug;
    return { ...error, slug, ...messageFor(error.reason ?? slug, error) };
  }
  console.error(error);
  return { slug: "app-error", status: 0, errors: {}, ...messageFor("app-error") };
}
