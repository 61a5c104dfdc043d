/**
 * Spotify's Web API, as far as this app uses it, through the API's gateway.
 *
 * The types are written by hand, for what is shown and no more. Apps made before February 2026 and those made
 * since get different names for the same things (`tracks` or `items`, `track` or `item`): the functions below
 * take either, and pages see one shape.
 */
import type { AxiosRequestConfig } from "axios";
import { api } from "./api";

interface Linked {
  id: string | null; // null for a file on somebody's own disk
  name: string;
  uri: string;
  external_urls?: { spotify?: string };
}

export interface Image {
  url: string;
  width: number | null;
}

export type Artist = Linked;

export interface Album extends Linked {
  images: Image[] | null;
}

export interface Show extends Linked {
  images: Image[] | null;
}

export interface Track extends Linked {
  type: "track";
  album: Album;
  artists: Artist[];
  duration_ms: number;
  explicit: boolean;
}

export interface Episode extends Linked {
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

export interface Playlist extends Linked {
  id: string;
  description: string | null;
  images: Image[] | null;
  owner: { display_name: string | null; id: string; external_urls?: { spotify?: string } };
  items?: Count;
  tracks?: Count;
}

interface Page<T> {
  items: (T | null)[];
  total: number;
  next: string | null;
}

interface PlaylistEntry {
  item?: Playable | null;
  track?: Playable | null | boolean;
}

/** What is shown of a list so far, and whether there is more. */
export interface Part<T> {
  items: T[];
  total: number;
  /** Where the next part begins; null at the end. */
  next: number | null;
}

// --- Looking -----------------------------------------------------------------------------------------

/** What plays; null when nothing does anywhere (Spotify answers 204). */
export async function player(config?: AxiosRequestConfig): Promise<Player | null> {
  return (await api.spotify<Player | null>("/me/player?additional_types=track,episode", config)) || null;
}

export async function devices(): Promise<Device[]> {
  return (await api.spotify<{ devices: Device[] }>("/me/player/devices")).devices;
}

const AT_ONCE = 50;

/** The person's playlists. Spotify's list may have holes. */
export async function playlists(offset = 0): Promise<Part<Playlist>> {
  const page = await api.spotify<Page<Playlist>>(`/me/playlists?limit=${AT_ONCE}&offset=${offset}`);
  return { ...part(page, offset), items: page.items.filter((playlist) => playlist !== null) };
}

export function playlist(id: string): Promise<Playlist> {
  return api.spotify<Playlist>(`/playlists/${encodeURIComponent(id)}`);
}

/** How many tracks a playlist has; undefined where Spotify does not say. */
export function trackCount(playlist: Playlist): number | undefined {
  return (playlist.items ?? playlist.tracks)?.total;
}

/** What is in a playlist. null stands for what was there once. */
export async function playlistItems(playlist: Playlist, offset = 0): Promise<Part<Playable | null>> {
  // The name of the list in the playlist itself says which of the two addresses this app has.
  const name = playlist.tracks && !playlist.items ? "tracks" : "items";
  const path = `/playlists/${encodeURIComponent(playlist.id)}/${name}`;
  const page = await api.spotify<Page<PlaylistEntry>>(
    `${path}?limit=${AT_ONCE}&offset=${offset}&additional_types=track,episode`,
  );
  return { ...part(page, offset), items: page.items.map(playableOf) };
}

function playableOf(entry: PlaylistEntry | null): Playable | null {
  const found = entry?.item ?? entry?.track;
  return typeof found === "object" ? found : null; // `track` is sometimes just a flag
}

export type Range = "short_term" | "medium_term" | "long_term";

export async function topTracks(range: Range): Promise<Track[]> {
  const page = await api.spotify<Page<Track>>(`/me/top/tracks?limit=${AT_ONCE}&time_range=${range}`);
  return page.items.filter((track) => track !== null);
}

function part(page: Page<unknown>, offset: number): Omit<Part<never>, "items"> {
  return { total: page.total, next: page.next ? offset + page.items.length : null };
}

// --- Steering ----------------------------------------------------------------------------------------

export const steer = {
  play: () => api.tellSpotify("PUT", "/me/player/play"),
  playFrom: (contextUri: string, position = 0) =>
    api.tellSpotify("PUT", "/me/player/play", { context_uri: contextUri, offset: { position } }),
  pause: () => api.tellSpotify("PUT", "/me/player/pause"),
  next: () => api.tellSpotify("POST", "/me/player/next"),
  previous: () => api.tellSpotify("POST", "/me/player/previous"),
  volume: (percent: number) => api.tellSpotify("PUT", `/me/player/volume?volume_percent=${percent}`),
  moveTo: (deviceId: string) => api.tellSpotify("PUT", "/me/player", { device_ids: [deviceId], play: true }),
};

// --- Showing -----------------------------------------------------------------------------------------

export function coverOf(item: Playable): Image[] {
  return (item.type === "episode" ? (item.images ?? item.show.images) : item.album.images) ?? [];
}

/** The narrowest image that is still sharp at this width, otherwise the widest. Spotify promises no order. */
export function imageFor(images: (Image | null)[] | null | undefined, width: number): string | undefined {
  const usable = (images ?? []).filter((image): image is Image => Boolean(image?.url));
  const widestFirst = usable.sort((one, other) => (other.width ?? 0) - (one.width ?? 0));
  const sharp = widestFirst.filter((image) => (image.width ?? 0) >= width * devicePixelRatio);
  return (sharp.at(-1) ?? widestFirst[0])?.url;
}

/** The item's page at Spotify. Only such an address is ever linked to. */
export function spotifyLink(thing: { external_urls?: { spotify?: string } }): string | undefined {
  const url = thing.external_urls?.spotify;
  return url?.startsWith("https://open.spotify.com/") ? url : undefined;
}

/** Spotify sends descriptions with HTML entities in them. */
export function plainText(html: string): string {
  return new DOMParser().parseFromString(html, "text/html").body.textContent ?? "";
}
