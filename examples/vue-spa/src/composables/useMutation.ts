/** Change something on a click, with its problem. */
import { nextTick, ref, watch, type Ref } from "vue";
import type { Problem } from "backline";
import { problemOf } from "../api";
import { messageFor } from "../messages";
import { online } from "../online";

interface Mutation<A extends unknown[]> {
  busy: Ref<boolean>;
  problem: Ref<Problem | null>;
  run: (...args: A) => Promise<void>;
}

/**
 * Run an action, one call at a time. A second click during a call does nothing.
 *
 * `fields` maps problems to the form field that they are shown at, like validation errors.
 */
export function useMutation<A extends unknown[]>(
  action: (...args: A) => Promise<void>,
  fields: Record<string, string> = {},
): Mutation<A> {
  const busy = ref(false);
  const problem = ref<Problem | null>(null);

  async function run(...args: A): Promise<void> {
    if (busy.value) return;
    const focused = document.activeElement;
    busy.value = true;
    problem.value = null;
    try {
      await action(...args);
    } catch (error) {
      problem.value = atField(problemOf(error), fields);
    } finally {
      busy.value = false;
      await nextTick();
      // The button was disabled meanwhile, which takes the focus away from it.
      if (document.activeElement === document.body) (focused as HTMLElement | null)?.focus({ preventScroll: true });
    }
  }

  watch(online, () => {
    if (problem.value?.slug === "offline") problem.value = null;
  });
  return { busy, problem, run };
}

// At a field, these problems have another meaning than elsewhere.
const FIELD_MESSAGES: Record<string, string> = { "invalid-credentials": "wrong-password", "not-found": "wrong-code" };

function atField(problem: Problem, fields: Record<string, string>): Problem {
  const field = fields[problem.slug];
  if (!field) return problem;
  const { title, detail } = problem.slug in FIELD_MESSAGES ? messageFor(FIELD_MESSAGES[problem.slug]!) : problem;
  const slug = "validation-error";
  return { ...problem, slug, ...messageFor(slug), errors: { [field]: [`${title}. ${detail}`.trim()] } };
}
