/** Load data for a page, with its problem. */
import { onScopeDispose, ref, shallowRef, watch, type Ref, type ShallowRef } from "vue";
import type { Problem } from "backline";
import { problemOf } from "../api";
import { online } from "../online";

interface Query<T> {
  data: ShallowRef<T | null>;
  problem: Ref<Problem | null>;
  load: () => Promise<void>;
}

/**
 * Load data now; `load()` loads it again. Meanwhile, and after a failure, the old data stays.
 *
 * It is loaded again when the network returns, and after the wait that the API asks for.
 */
export function useQuery<T>(fetch: () => Promise<T>): Query<T> {
  const data = shallowRef<T | null>(null);
  const problem = ref<Problem | null>(null);
  let latest = 0;
  let timer = 0;

  async function load(): Promise<void> {
    window.clearTimeout(timer);
    const request = ++latest;
    problem.value = null;
    try {
      const loaded = await fetch();
      if (request === latest) data.value = loaded; // a slow response does not overwrite a newer one
    } catch (error) {
      if (request !== latest) return;
      problem.value = problemOf(error);
      if (problem.value.retryAfter) timer = window.setTimeout(load, problem.value.retryAfter * 1000);
    }
  }

  watch(online, (isOnline) => {
    if (isOnline && problem.value) void load();
  });
  onScopeDispose(() => {
    latest++; // drops a pending response
    window.clearTimeout(timer);
  });
  void load();
  return { data, problem, load };
}
