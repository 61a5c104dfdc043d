/**
 * The part of Spotify's Web API that this app uses, through the gateway.
 *
 * The types cover only what is shown. Spotify uses other names for apps created since February 2026 (`items`
 * for `tracks`, `item` for `track`). The functions below accept both, and pages see one shape.
 */
import type { RequestOptions } from "backline";
import { backline } from "./api";

const { spotify } = backline;

interface SpotifyObject {
  id: string | null; // null for a local file
  name: string;
  uri: string;
  external_urls?: { spotify?: string };
}

export interface Image {
  url: string;
  width: number | null;
}

export type Artist = SpotifyObject;

export interface Album extends SpotifyObject {
  images: Image[] | null;
}

export interface Show extends SpotifyObject {
  images: Image[] | null;
}

export interface Track extends SpotifyObject {
  type: "track";
  album: Album;
  artists: Artist[];
  duration_ms: number;
  explicit: boolean;
}

export interface Episode extends SpotifyObject {
  type: "episode";
  show: Show;
  images: Image[] | null;
  duration_ms: number;
  explicit: boolean;
}

export type Playable = Track | Episode;

export interface Device {
  id: string | null;
  name: string;
  type: string;
  is_active: boolean;
  is_restricted: boolean;
  supports_volume: boolean;
  volume_percent: number | null;
}

export interface Player {
  device: Device;
  is_playing: boolean;
  progress_ms: number | null;
  item: Playable | null;
  currently_playing_type: "track" | "episode" | "ad" | "unknown";
  actions?: { disallows?: Record<string, boolean> };
}

interface Count {
  total: number;
}

export interface Playlist extends SpotifyObject {
  id: string;
  description: string | null;
  images: Image[] | null;
  owner: { display_name: string | null; id: string; external_urls?: { spotify?: string } };
  items?: Count;
  tracks?: Count;
}

interface SpotifyPage<T> {
  items: (T | null)[];
  total: number;
  next: string | null;
}

interface PlaylistEntry {
  item?: Playable | null;
  track?: Playable | null | boolean;
}

/** A page of a list. */
export interface Page<T> {
  items: T[];
  total: number;
  /** The offset of the next page; null at the end. */
  next: number | null;
}

// --- Reads -----------------------------------------------------------------------------------------

/** The playback state; null if nothing is playing (204). */
export function player(options?: RequestOptions): Promise<Player | null> {
  return spotify.get<Player | null>("me/player", { query: { additional_types: "track,episode" }, ...options });
}

export async function devices(): Promise<Device[]> {
  return (await spotify.get<{ devices: Device[] }>("me/player/devices")).devices;
}

const PAGE_SIZE = 50;

/** The person's playlists. Spotify's list may contain nulls. */
export async function playlists(offset = 0): Promise<Page<Playlist>> {
  const page = await spotify.get<SpotifyPage<Playlist>>("me/playlists", { query: { limit: PAGE_SIZE, offset } });
  return { ...toPage(page, offset), items: page.items.filter((playlist) => playlist !== null) };
}

export function playlist(id: string): Promise<Playlist> {
  return spotify.get<Playlist>(`playlists/${encodeURIComponent(id)}`);
}

/** How many tracks a playlist has, if Spotify says so. */
export function trackCount(playlist: Playlist): number | undefined {
  return (playlist.items ?? playlist.tracks)?.total;
}

/** The items of a playlist; null for items that are no longer available. */
export async function playlistItems(playlist: Playlist, offset = 0): Promise<Page<Playable | null>> {
  // The playlist's own member shows which of the two paths this app must use.
  const name = playlist.tracks && !playlist.items ? "tracks" : "items";
  const page = await spotify.get<SpotifyPage<PlaylistEntry>>(`playlists/${encodeURIComponent(playlist.id)}/${name}`, {
    query: { limit: PAGE_SIZE, offset, additional_types: "track,episode" },
  });
  return { ...toPage(page, offset), items: page.items.map(playableOf) };
}

function playableOf(entry: PlaylistEntry | null): Playable | null {
  const found = entry?.item ?? entry?.track;
  return typeof found === "object" ? found : null; // `track` is sometimes just a flag
}

export type Range = "short_term" | "medium_term" | "long_term";

export async function topTracks(range: Range): Promise<Track[]> {
  const page = await spotify.get<SpotifyPage<Track>>("me/top/tracks", {
    query: { limit: PAGE_SIZE, time_range: range },
  });
  return page.items.filter((track) => track !== null);
}

function toPage(page: SpotifyPage<unknown>, offset: number): Omit<Page<never>, "items"> {
  return { total: page.total, next: page.next ? offset + page.items.length : null };
}

// --- Commands ----------------------------------------------------------------------------------------

export const commands = {
  play: () => spotify.put("me/player/play"),
  playFrom: (contextUri: string, position = 0) =>
    spotify.put("me/player/play", { body: { context_uri: contextUri, offset: { position } } }),
  pause: () => spotify.put("me/player/pause"),
  next: () => spotify.post("me/player/next"),
  previous: () => spotify.post("me/player/previous"),
  volume: (percent: number) => spotify.put("me/player/volume", { query: { volume_percent: percent } }),
  save: (item: Playable) => spotify.put("me/library", { query: { uris: item.uri } }),
  moveTo: (deviceId: string) => spotify.put("me/player", { body: { device_ids: [deviceId], play: true } }),
};

// --- Display -----------------------------------------------------------------------------------------

export function coverOf(item: Playable): Image[] {
  return (item.type === "episode" ? (item.images ?? item.show.images) : item.album.images) ?? [];
}

/** The narrowest image that is sharp at this width, or else the widest. Spotify does not sort them. */
export function imageFor(images: (Image | null)[] | null | undefined, width: number): string | undefined {
  const usable = (images ?? []).filter((image): image is Image => Boolean(image?.url));
  const widestFirst = usable.sort((one, other) => (other.width ?? 0) - (one.width ?? 0));
  const sharp = widestFirst.filter((image) => (image.width ?? 0) >= width * devicePixelRatio);
  return (sharp.at(-1) ?? widestFirst[0])?.url;
}

/** The URL of the object's page at Spotify. No other URL is accepted. */
export function spotifyLink(thing: { external_urls?: { spotify?: string } }): string | undefined {
  const url = thing.external_urls?.spotify;
  return url?.startsWith("https://open.spotify.com/") ? url : undefined;
}

/** The text of a description, which Spotify sends with HTML entities. */
export function plainText(html: string): string {
  return new DOMParser().parseFromString(html, "text/html").body.textContent ?? "";
}
