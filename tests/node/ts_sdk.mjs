// The calls of @spotify/web-api-ts-sdk: every method of its endpoints.
import { SpotifyApi } from "@spotify/web-api-ts-sdk";
import { addResponse, baseUrl, finish, items, record, recordFailures, token, tracks } from "./recorder.mjs";

// The SDK always calls https://api.spotify.com/v1. Its option `fetch` maps that to another base URL.
async function mappedFetch(url, options) {
  const mapped = url.replace("https://api.spotify.com/v1/", `${baseUrl}/`);
  const response = await fetch(mapped, options);
  addResponse(options.method, mapped, response.status, (name) => response.headers.get(name));
  return response;
}

function client(accessToken) {
  const stored = { access_token: accessToken, token_type: "Bearer", expires_in: 3600, refresh_token: "unused" };
  return SpotifyApi.withAccessToken("unused", stored, { fetch: mappedFetch });
}

const api = client(token);
const find = (path) => path.split(".").reduce((object, name) => object[name], api);
const call = (path, ...args) => {
  const [method, owner] = [path.split(".").at(-1), path.split(".").slice(0, -1).join(".")];
  const object = owner ? find(owner) : api;
  return record(path, path, () => object[method](...args));
};

// The catalog
await call("tracks.get", items.track);
await call("tracks.get", items.track, "US");
await call("tracks.get", items.unlisted);
await call("tracks.get", "malformed");
await call("tracks.get", [items.track, items.other_track], "SE");
await call("tracks.audioFeatures", items.track);
await call("tracks.audioFeatures", [items.track]);
await call("tracks.audioAnalysis", items.track);
await call("albums.get", items.album);
await call("albums.get", [items.album, items.other_album], "US");
await call("albums.tracks", items.album, undefined, 2, 1);
await call("artists.get", items.artist);
await call("artists.get", [items.artist, items.other_artist]);
await call("artists.albums", items.artist, "album,single", undefined, 1);
await call("artists.topTracks", items.artist, "SE");
await call("artists.relatedArtists", items.artist);
await call("audiobooks.get", items.audiobook, "GB");
await call("audiobooks.get", [items.audiobook], "GB");
await call("audiobooks.getAudiobookChapters", items.audiobook, "GB", 1);
await call("chapters.get", items.chapter, "GB");
await call("chapters.get", [items.chapter], "GB");
await call("episodes.get", items.episode, "GB");
await call("episodes.get", [items.episode], "GB");
await call("shows.get", items.show, "GB");
await call("shows.get", [items.show], "GB");
await call("shows.episodes", items.show, "GB", 2);
await call("markets.getAvailableMarkets");
await call("browse.getNewReleases", undefined, 2);
await call("browse.getFeaturedPlaylists");
await call("browse.getCategories", undefined, "sv_SE", 2);
await call("browse.getCategory", "dinner");
await call("browse.getCategory", "unknown");
await call("browse.getPlaylistsForCategory", "dinner");
await call("recommendations.get", { seed_tracks: [items.track] });
await call("recommendations.genreSeeds");
const kinds = ["track", "album", "artist", "playlist", "show", "episode", "audiobook"];
for (const kind of kinds) await call("search", "a", [kind], undefined, 3);
await call("search", "Salt & Älphabet? #1/2", ["track", "album"], "from_token", 3);
await call("search", "a", ["unknown"]);
await call("search", "a", ["track"], undefined, 51);

// People
await call("currentUser.profile");
await call("users.profile", items.other_person);
for (const kind of ["artists", "tracks"]) {
  await call("currentUser.topItems", kind, "short_term", 3);
  await call("currentUser.topItems", kind, "unknown");
}
for (const change of ["follow", "unfollow"])
  for (const [kind, id] of [["artist", items.artist], ["user", items.other_person]]) {
    await call(`currentUser.${change}ArtistsOrUsers`, [id], kind);
    await call("currentUser.followsArtistsOrUsers", [id], kind);
  }

// Playlists
await call("playlists.getUsersPlaylists", items.other_person, 2);
await call("playlists.getPlaylist", items.own_playlist);
await call("playlists.getPlaylist", items.foreign_playlist, undefined, "name,owner(id)");
await call("playlists.getPlaylistItems", items.own_playlist, undefined, undefined, 3, 4);
await call("playlists.getPlaylistItems", items.foreign_playlist);
await call("playlists.getPlaylistCoverImage", items.own_playlist);
await call("currentUser.playlists.follow", items.unfollowed_playlist);
await call("currentUser.playlists.isFollowing", items.unfollowed_playlist, [items.person]);
await call("currentUser.playlists.unfollow", items.unfollowed_playlist);
await call("playlists.changePlaylistDetails", items.foreign_playlist, { name: "Not mine" });
const created = await call("playlists.createPlaylist", items.person, { name: "Påsk & co.", description: "🎻", public: false });
const playlist = created?.id ?? items.own_playlist;
await call("playlists.addItemsToPlaylist", playlist, [...tracks, `spotify:episode:${items.episode}`]);
await call("playlists.addItemsToPlaylist", playlist, tracks.slice(0, 1), 0);
await call("playlists.addItemsToPlaylist", playlist, ["spotify:track:malformed"]);
await call("playlists.movePlaylistItems", playlist, 0, 2, 3);
await call("playlists.getPlaylistItems", playlist);
await call("playlists.removeItemsFromPlaylist", playlist, { tracks: [{ uri: tracks[0] }] });
await call("playlists.updatePlaylistItems", playlist, { uris: tracks });
await call("playlists.changePlaylistDetails", playlist, { name: "Renamed", public: true, description: "Changed" });
await call("playlists.addCustomPlaylistCoverImageFromBase64String", playlist, items.cover);
await call("playlists.addCustomPlaylistCoverImage", playlist, Buffer.from("a cover"));
await call("playlists.getPlaylistCoverImage", playlist);
await call("playlists.getPlaylist", playlist);
await call("currentUser.playlists.unfollow", playlist);

// The library
for (const [kind, id] of [["Album", items.album], ["Audiobook", items.audiobook], ["Episode", items.episode], ["Show", items.show], ["Track", items.track]]) {
  const owner = `currentUser.${kind.toLowerCase()}s`;
  const has = kind === "Show" ? "hasSavedShow" : `hasSaved${kind}s`;
  await call(`${owner}.save${kind}s`, [id]);
  await call(`${owner}.${has}`, [id]);
  await call(`${owner}.saved${kind}s`);
  await call(`${owner}.removeSaved${kind}s`, [id]);
  await call(`${owner}.${has}`, [id]);
}

// The player
await call("player.getAvailableDevices");
await call("player.getPlaybackState", "SE", "episode");
await call("player.getCurrentlyPlayingTrack");
await call("player.startResumePlayback", "", `spotify:album:${items.album}`, undefined, { position: 1 });
await call("player.getPlaybackState");
await call("player.startResumePlayback", items.device, undefined, tracks, undefined, 1000);
await call("player.pausePlayback", items.device);
await call("player.skipToNext", items.device);
await call("player.skipToPrevious", items.device);
await call("player.seekToPosition", 5000);
await call("player.setRepeatMode", "context");
await call("player.setRepeatMode", "unknown");
await call("player.togglePlaybackShuffle", true);
await call("player.setPlaybackVolume", 30);
await call("player.addItemToPlaybackQueue", tracks[2]);
await call("player.transferPlayback", [items.other_device], true);
await call("player.transferPlayback", ["unknown"]);
await call("player.pausePlayback", "unknown");
await call("player.getUsersQueue");
await call("player.getPlaybackState");

// Pages: `next` to the last one
const firstPages = [
  (await call("search", "a", ["track"], undefined, 5))?.tracks,
  await call("currentUser.playlists.playlists", 2),
  await call("currentUser.tracks.savedTracks", 3),
  await call("playlists.getPlaylistItems", items.own_playlist, undefined, undefined, 4),
  await call("player.getRecentlyPlayedTracks", 5),
  (await call("currentUser.followedArtists", undefined, 1))?.artists,
];
for (let page of firstPages)
  while (page?.next) {
    const found = await call("makeRequest", "GET", page.next.replace(`${baseUrl}/`, ""));
    page = found?.tracks ?? found?.artists ?? found;
  }

await record("currentUser.profile", "unknown token", () => client("unknown").currentUser.profile());
await api.player.togglePlaybackShuffle(false); // Backline shares polls for a second, until the next command
await recordFailures(
  {
    read: () => api.tracks.get(items.track),
    poll: () => api.player.getPlaybackState(),
    command: () => api.player.addItemToPlaybackQueue(tracks[0]),
  },
  () => api.player.getUsersQueue(),
);

function methodsOf(object, prefix = "") {
  const methods = Object.getOwnPropertyNames(Object.getPrototypeOf(object)).filter((name) => name !== "constructor");
  const endpoints = Object.entries(object).filter(([, value]) => /Endpoints$/.test(value?.constructor?.name ?? ""));
  return [...methods.map((name) => prefix + name), ...endpoints.flatMap(([name, value]) => methodsOf(value, `${prefix}${name}.`))];
}
finish([...methodsOf(api), "search"]);
