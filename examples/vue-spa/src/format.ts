/** Dates, durations, and browsers as people read them. */

const day = new Intl.DateTimeFormat("en", { dateStyle: "long" });
const relative = new Intl.RelativeTimeFormat("en", { numeric: "auto" });

export const DAY_MS = 86_400_000;

export function asDay(moment: string): string {
  return day.format(new Date(moment));
}

export function asAgo(moment: string): string {
  const seconds = (new Date(moment).getTime() - Date.now()) / 1000;
  const [size, unit] = (
    [
      [86_400, "day"],
      [3_600, "hour"],
      [60, "minute"],
    ] as const
  ).find(([size]) => Math.abs(seconds) >= size) ?? [1, "second"];
  return unit === "second" ? "just now" : relative.format(Math.round(seconds / size), unit);
}

/** 203512 -> 3:23 */
export function asMinutes(ms: number): string {
  const seconds = Math.floor(ms / 1000);
  return `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
}

/** 75 -> 1 min 15 s */
export function asWait(seconds: number): string {
  if (seconds < 60) return `${seconds} s`;
  if (seconds >= 3600) return `${Math.floor(seconds / 3600)} h ${Math.ceil((seconds % 3600) / 60)} min`;
  return `${Math.floor(seconds / 60)} min${seconds % 60 ? ` ${seconds % 60} s` : ""}`;
}

/** A short name for a user agent. */
export function asBrowser(userAgent: string): string {
  const browsers = { Edg: "Edge", OPR: "Opera", Firefox: "Firefox", Chrome: "Chrome", Safari: "Safari" };
  const systems = {
    Android: "Android",
    iPhone: "iPhone",
    iPad: "iPad",
    Windows: "Windows",
    "Mac OS": "macOS",
    Linux: "Linux",
  };
  const find = (known: Record<string, string>) => Object.entries(known).find(([mark]) => userAgent.includes(mark))?.[1];
  const browser = find(browsers);
  const system = find(systems);
  if (!browser) return userAgent.split(" ")[0] || "Unknown program";
  return system ? `${browser} on ${system}` : browser;
}
