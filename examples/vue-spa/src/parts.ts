import { shallowRef } from "vue";
import { useDeed, useLoading } from "./doing";
import type { Part } from "./spotify";

/** A list that comes in parts: the first at once, each further one when it is asked for. */
export function useParts<T>(fetch: (offset: number) => Promise<Part<T>>) {
  const items = shallowRef<T[]>([]);
  const loading = useLoading(async () => {
    const first = await fetch(0);
    items.value = first.items;
    return first;
  });
  const more = useDeed(async () => {
    const part = await fetch(loading.data.value!.next!);
    items.value = [...items.value, ...part.items];
    loading.data.value = part;
  });
  return { items, part: loading.data, problem: loading.problem, load: loading.load, more };
}
