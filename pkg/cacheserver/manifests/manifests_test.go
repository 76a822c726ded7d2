// SPDX-License-Identifier: Apache-2.0

package manifests

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/registry-cache/extension/pkg/cacheserver/evict"
	"github.com/registry-cache/extension/pkg/cacheserver/gc"
	"github.com/registry-cache/extension/pkg/cacheserver/result"
	"github.com/registry-cache/extension/pkg/cacheserver/store"
	"github.com/registry-cache/extension/pkg/cacheserver/upstream"
	"github.com/registry-cache/extension/pkg/cacheserver/volume"
	"github.com/registry-cache/extension/pkg/cacheserver/volume/volumetest"
	"github.com/registry-cache/extension/pkg/oci"
)

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
	if _, err := f.Get(t.Context(), "other", ref); !isNotFound(err) {
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
			if _, err := f.Get(t.Context(), repository, byTag); err != nil {
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

		restarted := f.restart(t, Options{RevalidateAfter: forEver, MaxStale: 24 * time.Hour})
		restarted.want(t, "restarted", byTag, oldManifest, result.Stale, headTag)
		restarted.want(t, "restarted, again", byTag, oldManifest, result.Stale) // a silent upstream is not waited for each time

		f.failWith(nil)
		f.want(t, "upstream back", byTag, oldManifest, result.Hit, headTag)
		f.upstream.addManifest(repository, "v1", newManifest)
		f.want(t, "moved meanwhile", byTag, newManifest, result.Miss, headTag, "GET"+byDigest+newDigest.String())
	}
}

// An upstream with Retry-After is not requested for a tag with a stored answer, but for other tags.
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
		if _, err := f.Get(t.Context(), repository, oci.Reference{Tag: "v2"}); reasonOf(err) != result.RateLimited {
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
		f.group.Close()
	})
}

// B24: a client receives the 404 of the upstream, but one 404 in an incident does not end the use of the stored image.
func TestErrorsThatAreNoFailures(t *testing.T) {
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
	f.want(t, "deleted upstream, which then fails", byTag, oldManifest, result.Stale, headTag)
}

func TestStatManifestDownloadsNothing(t *testing.T) {
	t.Parallel()
	f := newFixture(t, forEver, store.Options{})
	f.upstream.addManifest(repository, "v1", oldManifest)
	want := &Manifest{Digest: oldDigest, MediaType: oci.MediaTypeManifest, Size: int64(len(oldManifest)), Outcome: result.Miss}
	for _, ref := range []oci.Reference{byTag, {Digest: oldDigest}} {
		m, err := f.Stat(t.Context(), repository, ref)
		if diff := cmp.Diff(want, m); err != nil || diff != "" {
			t.Errorf("%s: %v, -want +got\n%s", ref, err, diff)
		}
	}
	f.wantCalls(t, "HEAD", headTag, "HEAD"+byDigest+oldDigest.String())

	// The next request of containerd. It also stores the tag.
	f.want(t, "GET", oci.Reference{Digest: oldDigest}, oldManifest, result.Miss, "GET"+byDigest+oldDigest.String())
	if got, err := f.store.Tag(repository, "v1"); err != nil || got != oldDigest {
		t.Errorf("stored tag: %s, %v", got, err)
	}
	m, err := f.Stat(t.Context(), repository, byTag)
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
	if m, err := f.Stat(t.Context(), repository, byTag); err != nil || m.Digest != oldDigest {
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
	m, err := f.Stat(t.Context(), repository, oci.Reference{Digest: newDigest})
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
	f := newFixture(t, forEver, store.Options{Volume: volumetest.New(t, volumetest.Fail(syscall.ENOSPC, volume.OpWrite))})
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

// A manifest in memory needs no file, its use is recorded, and it is removed together with the stored manifest.
func TestRememberedManifest(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, forEver, store.Options{Policy: evict.NewLRU(time.Hour)})
		ctx, cancel := context.WithCancel(t.Context())
		collector := gc.New(f.store, gc.Options{Limits: evict.Limits{TTL: time.Hour, HighWatermark: 90, LowWatermark: 80}})
		var collecting sync.WaitGroup
		collecting.Go(func() { collector.Run(ctx) })
		defer collecting.Wait()
		defer cancel()
		synctest.Wait() // for the first index: it requests the verification of stored content
		f.upstream.addManifest(repository, "v1", oldManifest)
		ref := oci.Reference{Digest: oldDigest}
		f.want(t, "cold", ref, oldManifest, result.Miss, "GET"+byDigest+oldDigest.String())
		f.want(t, "warm", ref, oldManifest, result.Hit)
		data := filepath.Join(f.root, "docker/registry/v2/blobs/sha256", oldDigest.Encoded()[:2], oldDigest.Encoded(), "data")
		if err := os.WriteFile(data, []byte("{}"), 0o644); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			synctestSleep(t, 50*time.Minute)
			f.want(t, "used within the TTL, with a broken file", ref, oldManifest, result.Hit)
		}
		if _, err := f.Get(t.Context(), "library/other", ref); !isNotFound(err) {
			t.Errorf("another repository: %v", err)
		}
		f.upstream.seen()
		synctestSleep(t, 61*time.Minute)
		if _, err := os.Stat(data); !errors.Is(err, os.ErrNotExist) {
			t.Fatalf("not deleted: %v", err)
		}
		f.want(t, "deleted", ref, oldManifest, result.Miss, "GET"+byDigest+oldDigest.String())
	})
}

// synctestSleep advances the clock of the bubble and waits until all due work is done.
func synctestSleep(t *testing.T, d time.Duration) {
	t.Helper()
	time.Sleep(d)
	synctest.Wait()
}

const day = 24 * time.Hour

// B05: an old image is not served longer than maxStale after the last answer of the upstream, also after a restart.
func TestStaleTagsExpire(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 10*time.Second, store.Options{})
		defer f.group.Close()
		f.upstream.addManifest(repository, "v1", oldManifest)
		f.want(t, "cold", byTag, oldManifest, result.Miss, headTag, "GET"+byDigest+oldDigest.String())
		time.Sleep(10 * day)
		f.want(t, "revalidated after days", byTag, oldManifest, result.Hit, headTag)
		f.failWith(errBroken)
		time.Sleep(day - 1)
		f.want(t, "one day", byTag, oldManifest, result.Stale, headTag)
		time.Sleep(1 * time.Nanosecond)
		restarted := f.restart(t, Options{RevalidateAfter: 10 * time.Second, MaxStale: day})
		defer restarted.group.Close()
		time.Sleep(10 * time.Second)
		f.wantReason(t, "more than one day", byTag, result.Unavailable)
		restarted.wantReason(t, "more than one day, restarted", byTag, result.Unavailable)
		patient := f.restart(t, Options{RevalidateAfter: 10 * time.Second, MaxStale: 2 * day})
		defer patient.group.Close()
		patient.want(t, "longer maxStale, restarted", byTag, oldManifest, result.Stale, headTag)
		f.failWith(nil)
		f.want(t, "upstream works", byTag, oldManifest, result.Hit, headTag)
	})
}

// The time of the last answer survives a restart, although the tag has not changed for a long time. An answer that another
// client has caused must not extend it.
func TestTimeOfTagsIsStored(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 10*time.Second, store.Options{})
		defer f.group.Close()
		f.upstream.addManifest(repository, "v1", oldManifest)
		check := func(step string, confirmed time.Time, accuracy time.Duration) {
			t.Helper()
			recorded, err := f.store.TagTime(repository, "v1")
			if err != nil || confirmed.Sub(recorded) < 0 || confirmed.Sub(recorded) >= accuracy {
				t.Errorf("%s: recorded %s, %v, confirmed %s", step, recorded, err, confirmed)
			}
		}
		if _, err := f.Stat(t.Context(), repository, byTag); err != nil {
			t.Fatal(err)
		}
		resolved := time.Now()
		time.Sleep(time.Hour)
		f.want(t, "by digest", oci.Reference{Digest: oldDigest}, oldManifest, result.Miss, headTag, "GET"+byDigest+oldDigest.String())
		check("stored after the answer", resolved, time.Second)
		for range 100 {
			time.Sleep(time.Minute)
			f.want(t, "in use", byTag, oldManifest, result.Hit, headTag)
			check("in use", time.Now(), touchInterval)
		}
	})
}

// A6: the upstream overwrites a tag and deletes the previous manifest while the answer about the tag is fresh.
func TestDeletedManifestOfAMovedTag(t *testing.T) {
	t.Parallel()
	for name, pull := range map[string]func(f *fixture) (*Manifest, error){
		"HEAD by tag, GET by digest": func(f *fixture) (*Manifest, error) {
			found, err := f.Stat(t.Context(), repository, byTag)
			if err != nil {
				return nil, err
			}
			return f.Get(t.Context(), repository, oci.Reference{Digest: found.Digest})
		},
		"GET by tag": func(f *fixture) (*Manifest, error) { return f.Get(t.Context(), repository, byTag) },
		"HEAD by tag after a failed GET by digest": func(f *fixture) (*Manifest, error) {
			if _, err := f.Get(t.Context(), repository, oci.Reference{Digest: oldDigest}); reasonOf(err) != result.NotFound {
				return nil, err
			}
			return f.Stat(t.Context(), repository, byTag)
		},
	} {
		f := newFixture(t, forEver, store.Options{})
		f.upstream.addManifest(repository, "v1", oldManifest)
		if found, err := f.Stat(t.Context(), repository, byTag); err != nil || found.Digest != oldDigest {
			t.Fatalf("%s: %+v, %v", name, found, err)
		}
		f.upstream.addManifest(repository, "v1", newManifest)
		f.upstream.remove(repository + "@" + oldDigest.String())
		if found, err := pull(f); err != nil || found.Digest != newDigest {
			t.Errorf("%s: %+v, %v", name, found, err)
		}
		if found, err := f.Stat(t.Context(), repository, byTag); err != nil || found.Digest != newDigest {
			t.Errorf("%s, again: %+v, %v", name, found, err)
		}
	}
}

// F1: the fallback tag of referrers does not exist in most repositories. Clients treat 404 as "no referrers", but other
// errors as a failure.
func TestMissingTagIsRemembered(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 10*time.Second, store.Options{})
		defer f.group.Close()
		fallback := oci.Reference{Tag: "sha256-" + oldDigest.Encoded()}
		check := func(step string, want result.Reason, requests int) {
			t.Helper()
			for range 2 {
				if _, err := f.Get(t.Context(), repository, fallback); reasonOf(err) != want {
					t.Errorf("%s: GET: %v, want reason %d", step, err, want)
				}
				if _, err := f.Stat(t.Context(), repository, fallback); reasonOf(err) != want {
					t.Errorf("%s: HEAD: %v, want reason %d", step, err, want)
				}
			}
			if calls := f.upstream.seen(); len(calls) != requests {
				t.Errorf("%s: calls %v, want %d", step, calls, requests)
			}
		}
		check("first", result.NotFound, 2)
		time.Sleep(10 * time.Second)
		check("upstream works", result.NotFound, 1)
		time.Sleep(10 * time.Second)
		f.failWith(errBroken)
		check("upstream fails", result.NotFound, 1)
		time.Sleep(day)
		check("upstream fails for a day", result.Unavailable, 4)
		f.failWith(nil)
		f.upstream.addManifest(repository, fallback.Tag, oldManifest)
		if found, err := f.Get(t.Context(), repository, fallback); err != nil || found.Digest != oldDigest {
			t.Errorf("created: %+v, %v", found, err)
		}
	})
}

// A new tag is visible after at most 10 seconds.
func TestMissingTagIsRequestedAgainSoon(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, time.Hour, store.Options{})
		defer f.group.Close()
		f.wantReason(t, "missing", byTag, result.NotFound)
		f.upstream.addManifest(repository, "v1", oldManifest)
		time.Sleep(maxFreshMissing)
		f.want(t, "created", byTag, oldManifest, result.Miss, headTag, "GET"+byDigest+oldDigest.String())
	})
}

// All clients of a herd share one HEAD and one GET, in whatever order their requests arrive.
func TestHerdOfHeads(t *testing.T) {
	t.Parallel()
	f := newFixture(t, forEver, store.Options{})
	f.upstream.addManifest(repository, "v1", oldManifest)
	for range 10 {
		if found, err := f.Stat(t.Context(), repository, byTag); err != nil || found.Digest != oldDigest {
			t.Errorf("HEAD: %+v, %v", found, err)
		}
	}
	for range 10 {
		if found, err := f.Get(t.Context(), repository, oci.Reference{Digest: oldDigest}); err != nil || found.Digest != oldDigest {
			t.Errorf("GET: %+v, %v", found, err)
		}
	}
	f.wantCalls(t, "herd", headTag, "GET"+byDigest+oldDigest.String())
}

// F5: a client that only sends HEAD gets the last answer while the upstream fails, although nothing is stored.
func TestHeadLeavesAStaleAnswer(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0, store.Options{})
	f.upstream.addManifest(repository, "v1", oldManifest)
	want := &Manifest{Digest: oldDigest, MediaType: oci.MediaTypeManifest, Size: int64(len(oldManifest)), Outcome: result.Miss}
	for range 2 {
		got, err := f.Stat(t.Context(), repository, byTag)
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%v, -want +got\n%s", err, diff)
		}
		f.failWith(errBroken)
		want.Outcome = result.Stale
	}
	f.wantReason(t, "the content is not stored", byTag, result.Unavailable)
}

// While the upstream fails, a stored manifest is better than a newer one that is not stored.
func TestStaleTagPrefersStoredManifest(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0, store.Options{})
	f.upstream.addManifest(repository, "v1", oldManifest)
	f.want(t, "cold", byTag, oldManifest, result.Miss, headTag, "GET"+byDigest+oldDigest.String())
	f.upstream.addManifest(repository, "v1", newManifest)
	if found, err := f.Stat(t.Context(), repository, byTag); err != nil || found.Digest != newDigest {
		t.Fatalf("%+v, %v", found, err)
	}
	f.upstream.seen()
	f.failWith(errBroken)
	f.want(t, "GET", byTag, oldManifest, result.Stale, headTag)
	if found, err := f.Stat(t.Context(), repository, byTag); err != nil || found.Digest != oldDigest || found.Outcome != result.Stale {
		t.Errorf("HEAD: %+v, %v", found, err)
	}
}

func TestMaxStaleZeroDisablesStaleTags(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0, store.Options{})
	f.upstream.addManifest(repository, "v1", oldManifest)
	strict := f.restart(t, Options{})
	strict.want(t, "cold", byTag, oldManifest, result.Miss, headTag, "GET"+byDigest+oldDigest.String())
	f.failWith(errBroken)
	strict.wantReason(t, "upstream fails", byTag, result.Unavailable)
	restarted := f.restart(t, Options{RevalidateAfter: forEver})
	for range 2 {
		restarted.wantReason(t, "restarted", byTag, result.Unavailable)
	}
	strict.want(t, "by digest", oci.Reference{Digest: oldDigest}, oldManifest, result.Hit)
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
	}
}
