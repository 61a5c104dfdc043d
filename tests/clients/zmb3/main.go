// The calls of github.com/zmb3/spotify: most methods of its client. tests/clients/go_calls.py builds and runs it.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"

	"github.com/zmb3/spotify/v2"
	"golang.org/x/oauth2"
)

type input struct {
	BaseURL    string                       `json:"base_url"`
	Token      string                       `json:"token"`
	ControlURL string                       `json:"control_url"`
	Items      map[string]string            `json:"items"`
	Failures   []map[string]json.RawMessage `json:"failures"`
}

type outcome struct {
	Returned  any      `json:"returned,omitempty"`
	Raised    []string `json:"raised,omitempty"`
	Responses [][]any  `json:"responses"`
}

type call struct {
	Method  string  `json:"method"`
	Label   string  `json:"label"`
	Outcome outcome `json:"outcome"`
}

// recorder is the transport of the client. It sees all responses of the current call.
type recorder struct {
	calls     []call
	responses [][]any
}

func (r *recorder) RoundTrip(request *http.Request) (*http.Response, error) {
	response, err := http.DefaultTransport.RoundTrip(request)
	if err == nil {
		// Errors of Backline have a content type of their own.
		contentType := any(nil)
		if response.StatusCode < 400 {
			contentType = response.Header.Get("Content-Type")
		}
		seen := []any{request.Method, request.URL.String(), response.StatusCode, contentType, response.Header.Get("Retry-After")}
		r.responses = append(r.responses, seen)
	}
	return response, err
}

func (r *recorder) call(label string, make func() (any, error)) any {
	r.responses = [][]any{}
	result, err := make()
	found := outcome{}
	if err != nil {
		message := err.Error()
		if failed, is := err.(spotify.Error); is {
			message = fmt.Sprintf("%s, has to wait: %t", failed.Error(), !failed.RetryAfter.IsZero())
		}
		found.Raised = []string{fmt.Sprintf("%T", err), message}
	} else {
		found.Returned = result
	}
	found.Responses = r.responses
	// The result may be changed by a later page.
	frozen, _ := json.Marshal(found)
	_ = json.Unmarshal(frozen, &found)
	method := strings.SplitN(label, " ", 2)[0]
	r.calls = append(r.calls, call{method, label, found})
	if err != nil {
		return nil
	}
	return result
}

func (r *recorder) do(label string, make func() error) {
	r.call(label, func() (any, error) { return nil, make() })
}

func main() {
	in := input{}
	if err := json.Unmarshal([]byte(os.Args[1]), &in); err != nil {
		panic(err)
	}
	r := &recorder{}
	client := newClient(in, r, in.Token)
	catalog(in, r, client)
	people(in, r, client)
	playlists(in, r, client)
	library(in, r, client)
	player(in, r, client)
	pages(in, r, client)
	failures(in, r, client)
	_ = json.NewEncoder(os.Stdout).Encode(map[string]any{"calls": r.calls, "methods": []string{}})
}

func newClient(in input, r *recorder, token string) *spotify.Client {
	source := oauth2.StaticTokenSource(&oauth2.Token{AccessToken: token})
	transport := &oauth2.Transport{Source: source, Base: r}
	return spotify.New(&http.Client{Transport: transport}, spotify.WithBaseURL(in.BaseURL+"/"))
}

var ctx = context.Background()

func catalog(in input, r *recorder, c *spotify.Client) {
	id := func(name string) spotify.ID { return spotify.ID(in.Items[name]) }
	r.call("GetTrack", func() (any, error) { return c.GetTrack(ctx, id("track")) })
	r.call("GetTrack in a market", func() (any, error) { return c.GetTrack(ctx, id("track"), spotify.Market("US")) })
	r.call("GetTrack unlisted", func() (any, error) { return c.GetTrack(ctx, id("unlisted")) })
	r.call("GetTrack malformed", func() (any, error) { return c.GetTrack(ctx, "malformed") })
	r.call("GetTracks", func() (any, error) { return c.GetTracks(ctx, []spotify.ID{id("track"), id("other_track")}) })
	r.call("GetAlbum", func() (any, error) { return c.GetAlbum(ctx, id("album")) })
	r.call("GetAlbums", func() (any, error) { return c.GetAlbums(ctx, []spotify.ID{id("album"), id("other_album")}) })
	r.call("GetAlbumTracks", func() (any, error) { return c.GetAlbumTracks(ctx, id("album"), spotify.Limit(2), spotify.Offset(1)) })
	r.call("GetArtist", func() (any, error) { return c.GetArtist(ctx, id("artist")) })
	r.call("GetArtists", func() (any, error) { return c.GetArtists(ctx, id("artist"), id("other_artist")) })
	r.call("GetArtistsTopTracks", func() (any, error) { return c.GetArtistsTopTracks(ctx, id("artist"), "SE") })
	r.call("GetRelatedArtists", func() (any, error) { return c.GetRelatedArtists(ctx, id("artist")) })
	r.call("GetArtistAlbums", func() (any, error) {
		return c.GetArtistAlbums(ctx, id("artist"), []spotify.AlbumType{spotify.AlbumTypeAlbum}, spotify.Limit(1))
	})
	r.call("GetAudioAnalysis", func() (any, error) { return c.GetAudioAnalysis(ctx, id("track")) })
	r.call("GetAudioFeatures", func() (any, error) { return c.GetAudioFeatures(ctx, id("track")) })
	r.call("GetShow", func() (any, error) { return c.GetShow(ctx, id("show"), spotify.Market("GB")) })
	r.call("GetShowEpisodes", func() (any, error) { return c.GetShowEpisodes(ctx, in.Items["show"], spotify.Limit(2)) })
	r.call("GetEpisode", func() (any, error) { return c.GetEpisode(ctx, in.Items["episode"]) })
	r.call("NewReleases", func() (any, error) { return c.NewReleases(ctx, spotify.Limit(2)) })
	r.call("GetCategories", func() (any, error) { return c.GetCategories(ctx, spotify.Locale("sv_SE"), spotify.Limit(2)) })
	r.call("GetCategory", func() (any, error) { return c.GetCategory(ctx, "dinner") })
	r.call("GetCategory unknown", func() (any, error) { return c.GetCategory(ctx, "unknown") })
	r.call("GetCategoryPlaylists", func() (any, error) { return c.GetCategoryPlaylists(ctx, "dinner") })
	r.call("FeaturedPlaylists", func() (any, error) { _, found, err := c.FeaturedPlaylists(ctx); return found, err })
	r.call("GetAvailableGenreSeeds", func() (any, error) { return c.GetAvailableGenreSeeds(ctx) })
	r.call("GetRecommendations", func() (any, error) {
		return c.GetRecommendations(ctx, spotify.Seeds{Tracks: []spotify.ID{id("track")}}, nil)
	})
	kinds := map[string]spotify.SearchType{"track": spotify.SearchTypeTrack, "album": spotify.SearchTypeAlbum,
		"artist": spotify.SearchTypeArtist, "playlist": spotify.SearchTypePlaylist, "show": spotify.SearchTypeShow, "episode": spotify.SearchTypeEpisode}
	for _, name := range []string{"track", "album", "artist", "playlist", "show", "episode"} {
		r.call("Search for "+name, func() (any, error) { return c.Search(ctx, "a", kinds[name], spotify.Limit(3)) })
	}
	r.call("Search for special characters", func() (any, error) {
		return c.Search(ctx, "Salt & Älphabet? #1/2", spotify.SearchTypeTrack|spotify.SearchTypeAlbum, spotify.Market("from_token"))
	})
	r.call("Search with a limit that is too high", func() (any, error) { return c.Search(ctx, "a", spotify.SearchTypeTrack, spotify.Limit(51)) })
}

func people(in input, r *recorder, c *spotify.Client) {
	artist, person := spotify.ID(in.Items["artist"]), spotify.ID(in.Items["other_person"])
	r.call("CurrentUser", func() (any, error) { return c.CurrentUser(ctx) })
	r.call("GetUsersPublicProfile", func() (any, error) { return c.GetUsersPublicProfile(ctx, person) })
	r.call("CurrentUsersTopArtists", func() (any, error) {
		return c.CurrentUsersTopArtists(ctx, spotify.Limit(3), spotify.Timerange(spotify.ShortTermRange))
	})
	r.call("CurrentUsersTopTracks", func() (any, error) { return c.CurrentUsersTopTracks(ctx, spotify.Limit(3)) })
	r.do("FollowArtist", func() error { return c.FollowArtist(ctx, artist) })
	r.call("CurrentUserFollows an artist", func() (any, error) { return c.CurrentUserFollows(ctx, "artist", artist) })
	r.do("UnfollowArtist", func() error { return c.UnfollowArtist(ctx, artist) })
	r.do("FollowUser", func() error { return c.FollowUser(ctx, person) })
	r.call("CurrentUserFollows a user", func() (any, error) { return c.CurrentUserFollows(ctx, "user", person) })
	r.do("UnfollowUser", func() error { return c.UnfollowUser(ctx, person) })
}

func playlists(in input, r *recorder, c *spotify.Client) {
	id := func(name string) spotify.ID { return spotify.ID(in.Items[name]) }
	r.call("GetPlaylistsForUser", func() (any, error) { return c.GetPlaylistsForUser(ctx, in.Items["other_person"], spotify.Limit(2)) })
	r.call("GetPlaylist", func() (any, error) { return c.GetPlaylist(ctx, id("own_playlist")) })
	r.call("GetPlaylist with fields", func() (any, error) {
		return c.GetPlaylist(ctx, id("foreign_playlist"), spotify.Fields("name,owner(id)"))
	})
	r.call("GetPlaylistItems", func() (any, error) {
		return c.GetPlaylistItems(ctx, id("own_playlist"), spotify.Limit(3), spotify.Offset(4))
	})
	r.call("GetPlaylistTracks", func() (any, error) { return c.GetPlaylistTracks(ctx, id("foreign_playlist")) })
	r.do("FollowPlaylist", func() error { return c.FollowPlaylist(ctx, id("unfollowed_playlist"), false) })
	r.call("UserFollowsPlaylist", func() (any, error) {
		return c.UserFollowsPlaylist(ctx, id("unfollowed_playlist"), in.Items["person"])
	})
	r.do("UnfollowPlaylist", func() error { return c.UnfollowPlaylist(ctx, id("unfollowed_playlist")) })
	r.do("ChangePlaylistName of a foreign playlist", func() error { return c.ChangePlaylistName(ctx, id("foreign_playlist"), "Not mine") })
	list := id("own_playlist")
	created := r.call("CreatePlaylistForUser", func() (any, error) {
		return c.CreatePlaylistForUser(ctx, in.Items["person"], "Påsk & co.", "🎻", false, false)
	})
	if created, is := created.(*spotify.FullPlaylist); is {
		list = created.ID
	}
	tracks := []spotify.ID{id("track"), id("other_track"), id("third_track")}
	r.call("AddTracksToPlaylist", func() (any, error) { return c.AddTracksToPlaylist(ctx, list, tracks...) })
	r.call("AddTracksToPlaylist malformed", func() (any, error) { return c.AddTracksToPlaylist(ctx, list, "malformed") })
	r.call("ReorderPlaylistTracks", func() (any, error) {
		return c.ReorderPlaylistTracks(ctx, list, spotify.PlaylistReorderOptions{RangeStart: 0, RangeLength: 2, InsertBefore: 3})
	})
	r.call("GetPlaylistItems of the new playlist", func() (any, error) { return c.GetPlaylistItems(ctx, list) })
	r.call("RemoveTracksFromPlaylist", func() (any, error) { return c.RemoveTracksFromPlaylist(ctx, list, tracks[0]) })
	r.call("RemoveTracksFromPlaylistOpt", func() (any, error) {
		return c.RemoveTracksFromPlaylistOpt(ctx, list, []spotify.TrackToRemove{spotify.NewTrackToRemove(string(tracks[1]), []int{0})}, "")
	})
	r.do("ReplacePlaylistTracks", func() error { return c.ReplacePlaylistTracks(ctx, list, tracks...) })
	r.call("ReplacePlaylistItems", func() (any, error) {
		return c.ReplacePlaylistItems(ctx, list, spotify.URI("spotify:track:"+string(tracks[2])), spotify.URI("spotify:episode:"+in.Items["episode"]))
	})
	r.do("ChangePlaylistName", func() error { return c.ChangePlaylistName(ctx, list, "Renamed") })
	r.do("ChangePlaylistAccess", func() error { return c.ChangePlaylistAccess(ctx, list, true) })
	r.do("ChangePlaylistDescription", func() error { return c.ChangePlaylistDescription(ctx, list, "Changed") })
	r.do("ChangePlaylistNameAndAccess", func() error { return c.ChangePlaylistNameAndAccess(ctx, list, "Renamed again", false) })
	r.do("ChangePlaylistNameAccessAndDescription", func() error {
		return c.ChangePlaylistNameAccessAndDescription(ctx, list, "Renamed a third time", "Changed again", true)
	})
	r.do("SetPlaylistImage", func() error { return c.SetPlaylistImage(ctx, list, strings.NewReader("a cover")) })
	r.call("GetPlaylist of the new playlist", func() (any, error) { return c.GetPlaylist(ctx, list) })
	r.do("UnfollowPlaylist of one's own", func() error { return c.UnfollowPlaylist(ctx, list) })
}

func library(in input, r *recorder, c *spotify.Client) {
	track, album := spotify.ID(in.Items["track"]), spotify.ID(in.Items["album"])
	r.do("AddTracksToLibrary", func() error { return c.AddTracksToLibrary(ctx, track) })
	r.call("UserHasTracks", func() (any, error) { return c.UserHasTracks(ctx, track) })
	r.call("CurrentUsersTracks", func() (any, error) { return c.CurrentUsersTracks(ctx, spotify.Limit(2)) })
	r.do("RemoveTracksFromLibrary", func() error { return c.RemoveTracksFromLibrary(ctx, track) })
	r.do("AddAlbumsToLibrary", func() error { return c.AddAlbumsToLibrary(ctx, album) })
	r.call("UserHasAlbums", func() (any, error) { return c.UserHasAlbums(ctx, album) })
	r.call("CurrentUsersAlbums", func() (any, error) { return c.CurrentUsersAlbums(ctx, spotify.Limit(2)) })
	r.do("RemoveAlbumsFromLibrary", func() error { return c.RemoveAlbumsFromLibrary(ctx, album) })
	r.do("SaveShowsForCurrentUser", func() error { return c.SaveShowsForCurrentUser(ctx, []spotify.ID{spotify.ID(in.Items["show"])}) })
	r.call("CurrentUsersShows", func() (any, error) { return c.CurrentUsersShows(ctx, spotify.Limit(2)) })
}

func player(in input, r *recorder, c *spotify.Client) {
	album := spotify.URI("spotify:album:" + in.Items["album"])
	device, unknown := spotify.ID(in.Items["device"]), spotify.ID("unknown")
	here := &spotify.PlayOptions{DeviceID: &device}
	r.call("PlayerDevices", func() (any, error) { return c.PlayerDevices(ctx) })
	r.call("PlayerState", func() (any, error) { return c.PlayerState(ctx, spotify.Market("SE")) })
	r.call("PlayerCurrentlyPlaying", func() (any, error) { return c.PlayerCurrentlyPlaying(ctx) })
	r.call("PlayerRecentlyPlayed", func() (any, error) { return c.PlayerRecentlyPlayed(ctx) })
	r.call("PlayerRecentlyPlayedOpt", func() (any, error) { return c.PlayerRecentlyPlayedOpt(ctx, &spotify.RecentlyPlayedOptions{Limit: 3}) })
	r.do("PlayOpt", func() error {
		position := 1
		return c.PlayOpt(ctx, &spotify.PlayOptions{PlaybackContext: &album, PlaybackOffset: &spotify.PlaybackOffset{Position: &position}})
	})
	r.do("Play", func() error { return c.Play(ctx) })
	r.do("Pause", func() error { return c.Pause(ctx) })
	r.do("PauseOpt on an unknown device", func() error { return c.PauseOpt(ctx, &spotify.PlayOptions{DeviceID: &unknown}) })
	r.do("Next", func() error { return c.Next(ctx) })
	r.do("NextOpt", func() error { return c.NextOpt(ctx, here) })
	r.do("Previous", func() error { return c.Previous(ctx) })
	r.do("PreviousOpt", func() error { return c.PreviousOpt(ctx, here) })
	r.do("Seek", func() error { return c.Seek(ctx, 5000) })
	r.do("SeekOpt", func() error { return c.SeekOpt(ctx, 6000, here) })
	r.do("Repeat", func() error { return c.Repeat(ctx, "context") })
	r.do("RepeatOpt with an unknown state", func() error { return c.RepeatOpt(ctx, "unknown", here) })
	r.do("Volume", func() error { return c.Volume(ctx, 30) })
	r.do("VolumeOpt", func() error { return c.VolumeOpt(ctx, 31, here) })
	r.do("Shuffle", func() error { return c.Shuffle(ctx, true) })
	r.do("ShuffleOpt", func() error { return c.ShuffleOpt(ctx, false, here) })
	r.do("QueueSong", func() error { return c.QueueSong(ctx, spotify.ID(in.Items["third_track"])) })
	r.do("QueueSongOpt", func() error { return c.QueueSongOpt(ctx, spotify.ID(in.Items["track"]), here) })
	r.call("GetQueue", func() (any, error) { return c.GetQueue(ctx) })
	r.do("TransferPlayback", func() error { return c.TransferPlayback(ctx, spotify.ID(in.Items["other_device"]), true) })
	r.do("TransferPlayback to an unknown device", func() error { return c.TransferPlayback(ctx, unknown, true) })
	r.call("PlayerState afterwards", func() (any, error) { return c.PlayerState(ctx) })
}

// pages follows `next` to the last page, and `previous` back.
func pages(in input, r *recorder, c *spotify.Client) {
	if found, is := r.call("first page of search", func() (any, error) {
		return c.Search(ctx, "a", spotify.SearchTypeTrack, spotify.Limit(5))
	}).(*spotify.SearchResult); is {
		for number := 0; number < 4; number++ { // on the last page, `next` is null, and the library asks for it again
			r.call("NextTrackResults", func() (any, error) {
				err := c.NextTrackResults(ctx, found)
				return found, err
			})
		}
		r.call("PreviousTrackResults", func() (any, error) { err := c.PreviousTrackResults(ctx, found); return found, err })
	}
	if found, is := r.call("first page of saved tracks", func() (any, error) {
		return c.CurrentUsersTracks(ctx, spotify.Limit(3))
	}).(*spotify.SavedTrackPage); is {
		for last := false; !last; {
			r.call("NextPage of saved tracks", func() (any, error) {
				err := c.NextPage(ctx, found)
				last = err != nil
				return found, err
			})
		}
		r.call("PreviousPage of saved tracks", func() (any, error) { err := c.PreviousPage(ctx, found); return found, err })
	}
	if found, is := r.call("first page of playlists", func() (any, error) {
		return c.CurrentUsersPlaylists(ctx, spotify.Limit(2))
	}).(*spotify.SimplePlaylistPage); is {
		for last := false; !last; {
			r.call("NextPage of playlists", func() (any, error) {
				err := c.NextPage(ctx, found)
				last = err != nil
				return found, err
			})
		}
	}
	r.call("CurrentUsersFollowedArtists", func() (any, error) { return c.CurrentUsersFollowedArtists(ctx, spotify.Limit(1)) })
}

// failures meets each failure with a read, a poll, and a command, then looks at the effect.
func failures(in input, r *recorder, c *spotify.Client) {
	stranger := newClient(in, r, "unknown")
	r.call("unknown token", func() (any, error) { return stranger.CurrentUser(ctx) })
	_ = c.Shuffle(ctx, true) // Backline shares polls for a second, until the next command
	for _, failure := range in.Failures {
		name := strings.Trim(string(failure["name"]), `"`)
		control("POST", in, failure["fault"])
		r.call(name+", read", func() (any, error) { return c.GetTrack(ctx, spotify.ID(in.Items["track"])) })
		r.call(name+", poll", func() (any, error) { return c.PlayerState(ctx) })
		r.do(name+", command", func() error { return c.QueueSong(ctx, spotify.ID(in.Items["track"])) })
		control("DELETE", in, nil)
		if name != "rate limit" {
			r.call(name+", effect", func() (any, error) { return c.GetQueue(ctx) })
		}
	}
}

func control(method string, in input, body []byte) {
	request, err := http.NewRequest(method, in.ControlURL+"/faults", bytes.NewReader(body))
	if err != nil {
		panic(err)
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		panic(err)
	}
	_, _ = io.Copy(io.Discard, response.Body)
	_ = response.Body.Close()
	if response.StatusCode >= 300 {
		panic(response.Status)
	}
}
