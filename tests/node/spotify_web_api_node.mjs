// The calls of spotify-web-api-node: every method of its client that sends something to the Web API.
import http from "node:http";
import https from "node:https";
import { createRequire } from "node:module";
import { addResponse, baseUrl, finish, items, record, recordFailures, token, tracks } from "./recorder.mjs";

const SpotifyWebApi = createRequire(import.meta.url)("spotify-web-api-node");

// The library always calls https://api.spotify.com/v1. Another host name is mapped to it, as with /etc/hosts.
const base = new URL(baseUrl);
https.request = ({ host, hostname, ...options }, ...rest) => {
  if ((hostname ?? host) !== "api.spotify.com") throw new Error(`unexpected host: ${hostname ?? host}`);
  const mapped = { ...options, hostname: base.hostname, port: base.port, protocol: "http:", agent: undefined };
  const request = http.request(mapped, ...rest);
  request.on("response", (response) =>
    addResponse(options.method, options.path, response.statusCode, (name) => response.headers[name] ?? null),
  );
  return request;
};

const api = new SpotifyWebApi();
api.setAccessToken(token);
const call = (method, ...args) =>
  record(method, method, async () => {
    const { body, statusCode } = await api[method](...args);
    return { body, statusCode };
  });

// The catalog
await call("getTrack", items.track);
await call("getTrack", items.track, { market: "US" });
await call("getTrack", items.unlisted);
await call("getTrack", "malformed");
await call("getTracks", [items.track, items.other_track], { market: "SE" });
await call("getAlbum", items.album);
await call("getAlbums", [items.album, items.other_album]);
await call("getAlbumTracks", items.album, { limit: 2, offset: 1 });
await call("getArtist", items.artist);
await call("getArtists", [items.artist, items.other_artist]);
await call("getArtistAlbums", items.artist, { limit: 1, include_groups: "album,single" });
await call("getArtistTopTracks", items.artist, "SE");
await call("getArtistRelatedArtists", items.artist);
await call("getShow", items.show, { market: "GB" });
await call("getShows", [items.show]);
await call("getShowEpisodes", items.show, { limit: 2 });
await call("getEpisode", items.episode);
await call("getEpisodes", [items.episode]);
await call("getAudioFeaturesForTrack", items.track);
await call("getAudioFeaturesForTracks", [items.track]);
await call("getAudioAnalysisForTrack", items.track);
await call("getRecommendations", { seed_tracks: [items.track] });
await call("getAvailableGenreSeeds");
await call("getNewReleases", { limit: 2 });
await call("getFeaturedPlaylists");
await call("getCategories", { locale: "sv_SE", limit: 2 });
await call("getCategory", "dinner");
await call("getCategory", "unknown");
await call("getPlaylistsForCategory", "dinner");
for (const kind of ["Tracks", "Albums", "Artists", "Playlists", "Shows", "Episodes"])
  for (const offset of [0, 2]) await call(`search${kind}`, "a", { limit: 2, offset });
await call("search", "Salt & Älphabet? #1/2", ["track", "album"], { market: "from_token" });
await call("search", "a", ["unknown"]);
await call("searchTracks", "a", { limit: 51 });

// People
await call("getMe");
await call("getUser", items.other_person);
for (const method of ["getMyTopArtists", "getMyTopTracks"]) {
  await call(method, { time_range: "short_term", limit: 3 });
  await call(method, { time_range: "unknown" });
}
for (const change of ["follow", "unfollow"]) {
  await call(`${change}Artists`, [items.artist]);
  await call("isFollowingArtists", [items.artist, items.other_artist]);
  await call(`${change}Users`, [items.other_person]);
  await call("isFollowingUsers", [items.other_person]);
}
await call("getFollowedArtists", { limit: 1 });
await call("getFollowedArtists", { limit: 1, after: items.artist });

// Playlists
await call("getUserPlaylists", items.other_person, { limit: 2 });
await call("getUserPlaylists", { limit: 2, offset: 1 });
await call("getPlaylist", items.own_playlist);
await call("getPlaylist", items.foreign_playlist, { fields: "name,owner(id)" });
await call("getPlaylistTracks", items.own_playlist, { limit: 3, offset: 4 });
await call("getPlaylistTracks", items.foreign_playlist);
await call("followPlaylist", items.unfollowed_playlist, { public: false });
await call("areFollowingPlaylist", items.other_person, items.unfollowed_playlist, [items.person]);
await call("unfollowPlaylist", items.unfollowed_playlist);
await call("changePlaylistDetails", items.foreign_playlist, { name: "Not mine" });
const created = await call("createPlaylist", "Påsk & co.", { description: "🎻", public: false });
const playlist = created ? created.body.id : items.own_playlist;
await call("addTracksToPlaylist", playlist, [...tracks, `spotify:episode:${items.episode}`]);
await call("addTracksToPlaylist", playlist, tracks.slice(0, 1), { position: 0 });
await call("addTracksToPlaylist", playlist, ["spotify:track:malformed"]);
await call("reorderTracksInPlaylist", playlist, 0, 3, { range_length: 2 });
await call("getPlaylistTracks", playlist);
await call("removeTracksFromPlaylist", playlist, [{ uri: tracks[0] }]);
await call("replaceTracksInPlaylist", playlist, tracks);
const details = await call("getPlaylist", playlist);
await call("removeTracksFromPlaylistByPosition", playlist, [0], details?.body.snapshot_id ?? "unknown");
await call("changePlaylistDetails", playlist, { name: "Renamed", public: true, description: "Changed" });
await call("uploadCustomPlaylistCoverImage", playlist, items.cover);
await call("getPlaylist", playlist);
await call("unfollowPlaylist", playlist);

// The library
for (const kind of ["Album", "Track", "Show"]) {
  const ids = [items[kind.toLowerCase()]];
  await call(`addToMySaved${kind}s`, ids);
  await call(`containsMySaved${kind}s`, ids);
  await call(`getMySaved${kind}s`, { limit: 2, offset: 1 });
  await call(`removeFromMySaved${kind}s`, ids);
  await call(`containsMySaved${kind}s`, ids);
}

// The player
await call("getMyDevices");
await call("getMyRecentlyPlayedTracks", { limit: 5 });
await call("getMyCurrentPlayingTrack", { market: "SE" });
await call("getMyCurrentPlaybackState", { market: "SE", additional_types: "episode" });
await call("play", { context_uri: `spotify:album:${items.album}`, offset: { position: 1 } });
await call("getMyCurrentPlaybackState");
await call("play", { uris: tracks, position_ms: 1000 });
await call("play");
await call("pause");
await call("skipToNext");
await call("skipToPrevious");
await call("seek", 5000);
await call("setRepeat", "context");
await call("setRepeat", "unknown");
await call("setShuffle", true);
await call("setVolume", 30);
await call("addToQueue", tracks[2]);
await call("transferMyPlayback", [items.other_device], { play: true });
await call("transferMyPlayback", ["unknown"]);
await call("pause", { device_id: "unknown" });
await call("getMyCurrentPlaybackState");

api.setAccessToken("unknown");
await record("getMe", "unknown token", () => api.getMe());
api.setAccessToken(token);
await api.setShuffle(false); // Backline shares polls for a second, until the next command
const result = async (response) => ({ ...(await response), headers: undefined });
await recordFailures(
  {
    read: () => result(api.getTrack(items.track)),
    poll: () => result(api.getMyCurrentPlaybackState()),
    command: () => result(api.addToQueue(tracks[0])),
  },
  () => result(api.getMe()), // the library cannot read the queue
);
finish(Object.keys(SpotifyWebApi.prototype));
