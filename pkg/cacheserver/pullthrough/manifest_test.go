// SPDX-License-Identifier: Apache-2.0

package pullthrough

import (
	"errors"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/cacheserver/result"
	"github.com/registry-cache/extension/pkg/cacheserver/store"
	"github.com/registry-cache/extension/pkg/cacheserver/upstream"
	"github.com/registry-cache/extension/pkg/oci"
)

const (
	oldManifest = `{"schemaVersion":2,"config":{},"layers":[]}`
	newManifest = `{"schemaVersion":2,"config":{},"layers":[{}]}`
	forEver     = time.Hour
)

var (
	byTag     = oci.Reference{Tag: "v1"}
	oldDigest = digest.FromString(oldManifest)
	newDigest = digest.FromString(newManifest)
)

const (
	headTag  = "HEAD " + repository + ":v1"
	getTag   = "GET " + repository + ":v1"
	byDigest = " " + repository + "@"
)

// want asks for a manifest, compares the answer, and the calls of the upstream with those that are listed.
func (f *fixture) want(t *testing.T, step string, ref oci.Reference, content string, outcome result.Outcome, calls ...string) {
	t.Helper()
	m, err := f.Manifest(t.Context(), repository, ref)
	if err != nil {
		t.Errorf("%s: %v", step, err)
		return
	}
	want := &Manifest{
		Digest:    digest.FromString(content),
		MediaType: oci.MediaTypeManifest,
		Size:      int64(len(content)),
		Content:   []byte(content),
		Outcome:   outcome,
	}
	if diff := cmp.Diff(want, m); diff != "" {
		t.Errorf("%s: -want +got\n%s", step, diff)
	}
	f.wantCalls(t, step, calls...)
}

func (f *fixture) wantReason(t *testing.T, step string, ref oci.Reference, reason result.Reason) {
	t.Helper()
	_, err := f.Manifest(t.Context(), repository, ref)
	if explained, ok := errors.AsType[*result.Error](err); !ok || explained.Reason != reason {
		t.Errorf("%s: %v, want reason %d", step, err, reason)
	}
	f.upstream.seen()
}

// reasonOf returns the reason of an error as the package reports it to clients.
func reasonOf(t *testing.T, err error) result.Reason {
	t.Helper()
	explained, ok := errors.AsType[*result.Error](result.Explain(err))
	if !ok {
		t.Fatalf("%v is not an *Error", err)
	}
	return explained.Reason
}

func (f *fixture) wantCalls(t *testing.T, step string, calls ...string) {
	t.Helper()
	if diff := cmp.Diff(calls, f.upstream.seen()); diff != "" {
		t.Errorf("%s: calls: -want +got\n%s", step, diff)
	}
}

func (f *fixture) failWith(err error) {
	f.upstream.change(func() { f.upstream.fail = func(string) error { return err } })
}

func TestManifestByDigest(t *testing.T) {
	t.Parallel()
	f := newFixture(t, forEver, store.Options{})
	f.upstream.addManifest(repository, "v1", oldManifest)
	ref := oci.Reference{Digest: oldDigest}
	f.want(t, "cold", ref, oldManifest, result.Miss, "GET"+byDigest+oldDigest.String())
	f.failWith(errBroken)
	f.want(t, "warm", ref, oldManifest, result.Hit)
	f.wantReason(t, "another, without upstream", oci.Reference{Digest: newDigest}, result.Unavailable)
	f.failWith(nil)
	f.wantReason(t, "another", oci.Reference{Digest: newDigest}, result.NotFound)
	if _, err := f.Manifest(t.Context(), "other", ref); !isNotFound(err) {
		t.Errorf("other repository: %v", err)
	}
}

func TestTagIsRevalidated(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0, store.Options{})
	f.upstream.addManifest(repository, "v1", oldManifest)
	f.want(t, "cold", byTag, oldManifest, result.Miss, headTag, "GET"+byDigest+oldDigest.String())
	f.want(t, "warm", byTag, oldManifest, result.Hit, headTag)
	f.upstream.addManifest(repository, "v1", newManifest)
	f.want(t, "moved", byTag, newManifest, result.Miss, headTag, "GET"+byDigest+newDigest.String())
	f.want(t, "still there by digest", oci.Reference{Digest: oldDigest}, oldManifest, result.Hit)
	f.upstream.addManifest(repository, "v1", oldManifest)
	f.want(t, "moved back", byTag, oldManifest, result.Hit, headTag)
}

func TestTagIsAskedForOnce(t *testing.T) {
	t.Parallel()
	f := newFixture(t, forEver, store.Options{})
	f.upstream.addManifest(repository, "v1", oldManifest)
	var clients sync.WaitGroup
	for range 16 {
		clients.Go(func() {
			if _, err := f.Manifest(t.Context(), repository, byTag); err != nil {
				t.Error(err)
			}
		})
	}
	clients.Wait()
	f.wantCalls(t, "many clients", headTag, "GET"+byDigest+oldDigest.String())
	f.upstream.addManifest(repository, "v1", newManifest)
	f.want(t, "moved a moment ago", byTag, oldManifest, result.Hit)
}

func TestTagWithoutUpstream(t *testing.T) {
	t.Parallel()
	for _, temporary := range []error{errBroken, status(http.StatusTooManyRequests), status(http.StatusBadGateway)} {
		f := newFixture(t, 0, store.Options{})
		f.upstream.addManifest(repository, "v1", oldManifest)
		f.want(t, "cold", byTag, oldManifest, result.Miss, headTag, "GET"+byDigest+oldDigest.String())
		f.failWith(temporary)
		f.want(t, temporary.Error(), byTag, oldManifest, result.Stale, headTag)

		// Another process has only the volume.
		s, err := store.Open(f.root, store.Options{})
		if err != nil {
			t.Fatal(err)
		}
		restarted := &fixture{Cache: New(s, f.upstream, Options{RevalidateAfter: forEver}), upstream: f.upstream}
		defer restarted.Close()
		restarted.want(t, "restarted", byTag, oldManifest, result.Stale, headTag)
		restarted.want(t, "restarted, again", byTag, oldManifest, result.Stale) // a silent upstream is not waited for each time

		f.failWith(nil)
		f.want(t, "upstream back", byTag, oldManifest, result.Hit, headTag)
		f.upstream.addManifest(repository, "v1", newManifest)
		f.want(t, "moved meanwhile", byTag, newManifest, result.Miss, headTag, "GET"+byDigest+newDigest.String())
	}
}

// The upstream is left alone for as long as it asks for, but what the cache cannot answer is worth a try.
func TestUpstreamThatAsksForPatience(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 10*time.Second, store.Options{})
		f.upstream.addManifest(repository, "v1", oldManifest)
		f.want(t, "cold", byTag, oldManifest, result.Miss, headTag, "GET"+byDigest+oldDigest.String())
		time.Sleep(10 * time.Second)
		f.failWith(&upstream.Error{Op: "request", StatusCode: http.StatusTooManyRequests, RetryAfter: time.Minute})
		f.want(t, "refused", byTag, oldManifest, result.Stale, headTag)
		time.Sleep(time.Minute - 1)
		f.want(t, "patient", byTag, oldManifest, result.Stale)
		if _, err := f.Manifest(t.Context(), repository, oci.Reference{Tag: "v2"}); !isTemporary(err) {
			t.Errorf("another tag: %v", err)
		}
		f.wantCalls(t, "another tag", "HEAD "+repository+":v2")
		f.failWith(&upstream.Error{Op: "request", StatusCode: http.StatusServiceUnavailable, RetryAfter: time.Second})
		time.Sleep(time.Nanosecond)
		f.want(t, "refused again", byTag, oldManifest, result.Stale, headTag)
		f.failWith(nil)
		time.Sleep(10*time.Second - 1)
		f.want(t, "less than what is waited for anyway", byTag, oldManifest, result.Stale)
		time.Sleep(time.Nanosecond)
		f.want(t, "upstream back", byTag, oldManifest, result.Hit, headTag)
		f.Close()
	})
}

func TestTagThatIsNotStaleButWrong(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0, store.Options{})
	f.upstream.addManifest(repository, "v1", oldManifest)
	f.want(t, "cold", byTag, oldManifest, result.Miss, headTag, "GET"+byDigest+oldDigest.String())
	f.failWith(status(http.StatusForbidden))
	f.wantReason(t, "access lost", byTag, result.Denied)
	f.failWith(status(http.StatusUnauthorized))
	f.wantReason(t, "credentials wrong", byTag, result.Denied)
	f.failWith(status(http.StatusNotFound))
	f.wantReason(t, "deleted upstream", byTag, result.NotFound)
	f.failWith(errBroken)
	f.wantReason(t, "deleted upstream, which then went away", byTag, result.Unavailable)
}

func TestReasons(t *testing.T) {
	t.Parallel()
	for want, err := range map[result.Reason]error{
		result.NotFound:    status(http.StatusNotFound),
		result.Denied:      status(http.StatusForbidden),
		result.RateLimited: status(http.StatusTooManyRequests),
		result.TimedOut:    status(http.StatusRequestTimeout),
		result.Unavailable: status(http.StatusInternalServerError),
	} {
		f := newFixture(t, 0, store.Options{})
		f.failWith(err)
		f.wantReason(t, err.Error(), byTag, want)
		f.wantReason(t, err.Error(), oci.Reference{Digest: oldDigest}, want)
		if _, err := f.Blob(t.Context(), repository, oldDigest); reasonOf(t, err) != want {
			t.Errorf("blob: %v, want reason %d", err, want)
		}
		if _, _, err := f.StatBlob(t.Context(), repository, oldDigest); reasonOf(t, err) != want {
			t.Errorf("size of blob: %v, want reason %d", err, want)
		}
	}
}

func TestStatManifestDownloadsNothing(t *testing.T) {
	t.Parallel()
	f := newFixture(t, forEver, store.Options{})
	f.upstream.addManifest(repository, "v1", oldManifest)
	want := &Manifest{Digest: oldDigest, MediaType: oci.MediaTypeManifest, Size: int64(len(oldManifest)), Outcome: result.Miss}
	for _, ref := range []oci.Reference{byTag, {Digest: oldDigest}} {
		m, err := f.StatManifest(t.Context(), repository, ref)
		if diff := cmp.Diff(want, m); err != nil || diff != "" {
			t.Errorf("%s: %v, -want +got\n%s", ref, err, diff)
		}
	}
	f.wantCalls(t, "HEAD", headTag, "HEAD"+byDigest+oldDigest.String())

	// What containerd does next; it makes the tag known to the store too.
	f.want(t, "GET", oci.Reference{Digest: oldDigest}, oldManifest, result.Miss, "GET"+byDigest+oldDigest.String())
	if got, err := f.store.Tag(repository, "v1"); err != nil || got != oldDigest {
		t.Errorf("stored tag: %s, %v", got, err)
	}
	m, err := f.StatManifest(t.Context(), repository, byTag)
	want.Content, want.Outcome = []byte(oldManifest), result.Hit
	if diff := cmp.Diff(want, m); err != nil || diff != "" {
		t.Errorf("warm: %v, -want +got\n%s", err, diff)
	}
	f.wantCalls(t, "warm")
}

func TestUpstreamWithoutDigestInHead(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0, store.Options{})
	f.upstream.addManifest(repository, "v1", oldManifest)
	f.upstream.headWithoutDigest = true
	f.want(t, "cold", byTag, oldManifest, result.Miss, headTag, getTag)
	if m, err := f.StatManifest(t.Context(), repository, byTag); err != nil || m.Digest != oldDigest {
		t.Errorf("%+v, %v", m, err)
	}
}

func TestUpstreamWithoutHeadOfManifests(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0, store.Options{})
	f.upstream.addManifest(repository, "v1", oldManifest)
	f.upstream.change(func() {
		f.upstream.fail = func(call string) error {
			if strings.HasPrefix(call, "HEAD") {
				return status(http.StatusMethodNotAllowed)
			}
			return nil
		}
	})
	f.want(t, "tag", byTag, oldManifest, result.Miss, headTag, getTag)
	f.upstream.addManifest(repository, "v2", newManifest)
	m, err := f.StatManifest(t.Context(), repository, oci.Reference{Digest: newDigest})
	if err != nil || m.Digest != newDigest {
		t.Errorf("%+v, %v", m, err)
	}
}

func TestTagMovesBetweenHeadAndGet(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0, store.Options{})
	f.upstream.addManifest(repository, "v1", oldManifest)
	f.upstream.change(func() {
		f.upstream.fail = func(call string) error {
			if call == "GET"+byDigest+oldDigest.String() {
				// The old one is gone with the move.
				f.upstream.addManifest(repository, "v1", newManifest)
				return status(http.StatusNotFound)
			}
			return nil
		}
	})
	f.want(t, "moved", byTag, newManifest, result.Miss, headTag, "GET"+byDigest+oldDigest.String(), getTag)
	if got, err := f.store.Tag(repository, "v1"); err != nil || got != newDigest {
		t.Errorf("stored tag: %s, %v", got, err)
	}
}

func TestManifestThatCannotBeStored(t *testing.T) {
	t.Parallel()
	f := newFixture(t, forEver, store.Options{CreateFile: func(dir, prefix string) (store.File, error) {
		file, err := os.CreateTemp(dir, prefix)
		return &limitedFile{file, 0}, err
	}})
	f.upstream.addManifest(repository, "v1", oldManifest)
	f.want(t, "full volume", byTag, oldManifest, result.PassThrough, headTag, "GET"+byDigest+oldDigest.String())
	if n := f.leftovers(t); n > 0 {
		t.Errorf("%d files are left", n)
	}
}

func TestUnknownManifestIsPassedThrough(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0, store.Options{})
	const signed = `{"schemaVersion":1,"fsLayers":[]}`
	d := f.upstream.addManifest(repository, "v1", signed)
	f.want(t, "first", byTag, signed, result.PassThrough, headTag, "GET"+byDigest+d.String())
	f.want(t, "second", byTag, signed, result.PassThrough, headTag, "GET"+byDigest+d.String())
}

func TestTagTableIsBounded(t *testing.T) {
	t.Parallel()
	table := newTagTable(time.Minute)
	now := time.Now()
	for i := range maxTags {
		age := time.Duration(i%2) * time.Hour
		table.put(repository, digest.FromString(string(rune(i))).Encoded(), resolution{}, now.Add(-age))
	}
	if got := len(table.entries); got != maxTags {
		t.Fatalf("%d entries", got)
	}
	table.put(repository, "one-more", resolution{}, now)
	if got := len(table.entries); got != maxTags/2+1 {
		t.Errorf("%d entries after the old ones went", got)
	}
	for i := range maxTags {
		table.put(repository, digest.FromString(string(rune(i))).Encoded(), resolution{}, now)
	}
	table.put(repository, "another", resolution{}, now)
	if got := len(table.entries); got > maxTags {
		t.Errorf("%d entries", got)
	}
	if _, ok := table.fresh(repository, "another"); !ok {
		t.Error("the newest is gone")
	}
}
