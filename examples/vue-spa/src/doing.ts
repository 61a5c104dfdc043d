/** The two things pages do with the API: load something to show, and do something on a click. */
import { onScopeDispose, ref, shallowRef, watch, type Ref, type ShallowRef } from "vue";
import { problemOf, type Problem } from "./api";
import { online } from "./online";
import { inWords } from "./words";

interface Loading<T> {
  data: ShallowRef<T | null>;
  problem: Ref<Problem | null>;
  load: () => Promise<void>;
}

/**
 * Load at once; `load()` loads again. What is there already stays while that goes on, and when it fails.
 *
 * It is tried again by itself when the network is back, and when the wait that the API asks for is over.
 */
export function useLoading<T>(fetch: () => Promise<T>): Loading<T> {
  const data = shallowRef<T | null>(null);
  const problem = ref<Problem | null>(null);
  let newest = 0;
  let timer = 0;

  async function load(): Promise<void> {
    window.clearTimeout(timer);
    const mine = ++newest;
    problem.value = null;
    try {
      const loaded = await fetch();
      if (mine === newest) data.value = loaded; // a slow older answer does not overwrite a newer one
    } catch (error) {
      if (mine !== newest) return;
      problem.value = problemOf(error);
      if (problem.value.retryAfter) timer = window.setTimeout(load, problem.value.retryAfter * 1000);
    }
  }

  watch(online, (back) => {
    if (back && problem.value) void load();
  });
  onScopeDispose(() => {
    newest++; // an answer that is still to come finds nobody
    window.clearTimeout(timer);
  });
  void load();
  return { data, problem, load };
}

interface Deed<A extends unknown[]> {
  busy: Ref<boolean>;
  problem: Ref<Problem | null>;
  run: (...given: A) => Promise<void>;
}

/**
 * Do something once at a time: a second click while it goes on does nothing.
 *
 * `fields` names the problems that concern one field of the form: they are shown there, as if it were not valid.
 */
export function useDeed<A extends unknown[]>(
  deed: (...given: A) => Promise<void>,
  fields: Record<string, string> = {},
): Deed<A> {
  const busy = ref(false);
  const problem = ref<Problem | null>(null);

  async function run(...given: A): Promise<void> {
    if (busy.value) return;
    busy.value = true;
    problem.value = null;
    try {
      await deed(...given);
    } catch (error) {
      problem.value = atField(problemOf(error), fields);
    } finally {
      busy.value = false;
    }
  }

  return { busy, problem, run };
}

function atField(problem: Problem, fields: Record<string, string>): Problem {
  const field = fields[problem.slug];
  if (!field) return problem;
  const { title, detail } = problem.slug === "invalid-credentials" ? inWords("wrong-password") : problem;
  const slug = "validation-error";
  return { ...problem, slug, ...inWords(slug), errors: { [field]: [`${title}. ${detail}`.trim()] } };
}
