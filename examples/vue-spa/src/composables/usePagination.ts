import { shallowRef } from "vue";
import type { Page } from "../spotify";
import { useMutation } from "./useMutation";
import { useQuery } from "./useQuery";

/** Load the first page of a list, and further pages on demand. */
export function usePagination<T>(fetch: (offset: number) => Promise<Page<T>>) {
  const items = shallowRef<T[]>([]);
  const query = useQuery(async () => {
    const first = await fetch(0);
    items.value = first.items;
    return first;
  });
  const more = useMutation(async () => {
    const page = await fetch(query.data.value!.next!);
    items.value = [...items.value, ...page.items];
    query.data.value = page;
  });
  return { items, page: query.data, problem: query.problem, load: query.load, more };
}
