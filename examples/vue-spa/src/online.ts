import { ref } from "vue";

/** Whether the browser has a network, as far as it knows. */
export const online = ref(navigator.onLine);

window.addEventListener("online", () => (online.value = true));
window.addEventListener("offline", () => (online.value = false));
