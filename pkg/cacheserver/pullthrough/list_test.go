// SPDX-License-Identifier: Apache-2.0

package pullthrough

import (
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strconv"
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

// registries are the known kinds of registries by their support of n and last.
var registries = map[string]func(all []string, query url.Values) *upstream.TagPage{
	"by the specification": func(all []string, query url.Values) *upstream.TagPage {
		return sendTags(after(all, query.Get("last"), false), query)
	},
	"beginning with last": func(all []string, query url.Values) *upstream.TagPage {
		return sendTags(after(all, query.Get("last"), true), query)
	},
	"without pages": func(all []string, _ url.Values) *upstream.TagPage {
		return &upstream.TagPage{Tags: oci.NewTagList(all...)}
	},
	"starting over at the end": func(all []string, query url.Values) *upstream.TagPage {
		if rest := after(all, query.Get("last"), false); len(rest) > 0 {
			return &upstream.TagPage{Tags: oci.NewTagList(rest...)}
		}
		return &upstream.TagPage{Tags: oci.NewTagList(all...)}
	},
	"with tokens and pages of two": func(all []string, query url.Values) *upstream.TagPage {
		first, _ := strconv.Atoi(query.Get("token"))
		page := &upstream.TagPage{Tags: oci.NewTagList(all[first:min(first+2, len(all))]...)}
		if first+2 < len(all) {
			page.Next = url.Values{"token": {strconv.Itoa(first + 2)}}
			if n := query.Get("n"); n != "" {
				page.Next.Set("n", n)
			}
		}
		return page
	},
	"linking to itself": func(all []string, query url.Values) *upstream.TagPage {
		return &upstream.TagPage{Tags: oci.NewTagList(all...), Next: query}
	},
}

func after(all []string, last string, including bool) []string {
	i := slices.Index(all, last)
	if including && i >= 0 {
		i--
	}
	return all[i+1:]
}

func sendTags(tags []string, query url.Values) *upstream.TagPage {
	n, err := strconv.Atoi(query.Get("n"))
	if err != nil || len(tags) <= n {
		return &upstream.TagPage{Tags: oci.NewTagList(tags...)}
	}
	page := &upstream.TagPage{Tags: oci.NewTagList(tags[:n]...)}
	if n > 0 {
		page.Next = url.Values{"n": {strconv.Itoa(n)}, "last": {tags[n-1]}}
	}
	return page
}

func TestPagesOfTagsAreWhole(t *testing.T) {
	t.Parallel()
	all := []string{"b", "a", "v1.10", "v1.9", "B", "latest", "_"} // no registry's order
	for name, registry := range registries {
		for n := -1; n <= len(all)+1; n++ {
			query := url.Values{}
			if n >= 0 {
				query.Set("n", strconv.Itoa(n))
			}
			var got []string
			pages := 0
			for next := query; next != nil; pages++ {
				if pages > 2*len(all) {
					t.Fatalf("%s, n %d: no end after %d pages, at %v", name, n, pages, next)
				}
				answer := registry(all, next)
				page := paginate(answer.Tags, answer.Next, next)
				tags := slices.Collect(page.Tags.All())
				if n >= 0 && len(tags) > n {
					t.Errorf("%s, n %d: %d tags", name, n, len(tags))
				}
				got = append(got, tags...)
				next = page.Next
			}
			want := all
			switch {
			case n == 0:
				want = nil
			case n == 1 && name == "beginning with last":
				want = all[:1] // there is no way past the first tag
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s, n %d: -want +got\n%s", name, n, diff)
			}
		}
	}
}

func TestTagsAreAskedForOnce(t *testing.T) {
	t.Parallel()
	f := newFixture(t, time.Hour, store.Options{})
	proceed := make(chan struct{})
	f.upstream.tags = func(query url.Values) *upstream.TagPage {
		return &upstream.TagPage{Tags: oci.NewTagList(query.Get("n"))}
	}
	f.upstream.fail = func(string) error { <-proceed; return nil }
	var clients sync.WaitGroup
	for range 10 {
		clients.Go(func() {
			if page, err := f.Tags(t.Context(), repository, nil); err != nil || page.Tags.JSON() != `[""]` {
				t.Errorf("%+v, %v", page, err)
			}
		})
	}
	close(proceed)
	clients.Wait()
	page, err := f.Tags(t.Context(), repository, nil)
	if err != nil || page.Outcome != result.Hit {
		t.Errorf("%+v, %v", page, err)
	}
	f.wantCalls(t, "one query", "TAGS "+repository)
	if page, err = f.Tags(t.Context(), repository, url.Values{"n": {"3"}}); err != nil || page.Tags.JSON() != `["3"]` || page.Outcome != result.Miss {
		t.Errorf("another query: %+v, %v", page, err)
	}
	if page, err = f.Tags(t.Context(), "other", nil); err != nil || page.Outcome != result.Miss {
		t.Errorf("another repository: %+v, %v", page, err)
	}
}

func TestListsWithoutUpstream(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0, store.Options{})
	d := digest.FromString("subject")
	name := repository + "@" + d.String()
	f.upstream.referrers = map[string][]byte{name + "?": []byte("all"), name + "?artifactType=a": []byte("some")}
	f.upstream.tags = func(url.Values) *upstream.TagPage { return &upstream.TagPage{Tags: oci.NewTagList("v1")} }
	filtered := url.Values{"artifactType": {"a"}}
	check := func(step string, want result.Outcome, reason result.Reason) {
		t.Helper()
		for query, content := range map[*url.Values]string{{}: "all", &filtered: "some"} {
			got, err := f.Referrers(t.Context(), repository, d, *query)
			checkList(t, step+", "+content, want, reason, err, func() (string, result.Outcome) { return string(got.Index), got.Outcome }, content)
		}
		tags, err := f.Tags(t.Context(), repository, nil)
		checkList(t, step+", tags", want, reason, err, func() (string, result.Outcome) { return tags.Tags.JSON(), tags.Outcome }, `["v1"]`)
	}
	f.failWith(errSilent)
	check("before the first answer", "", result.TimedOut)
	f.failWith(nil)
	check("first", result.Miss, 0)
	for _, err := range []error{errSilent, errBroken, status(http.StatusTooManyRequests), status(http.StatusBadGateway)} {
		f.failWith(err)
		check(err.Error(), result.Stale, 0)
	}
	f.failWith(status(http.StatusForbidden))
	check("refused", "", result.Denied)
	f.failWith(errSilent)
	check("silent after having refused", "", result.TimedOut)
}

func checkList(t *testing.T, step string, want result.Outcome, reason result.Reason, err error, got func() (string, result.Outcome), content string) {
	t.Helper()
	if want == "" {
		if failed, ok := errors.AsType[*result.Error](err); !ok || failed.Reason != reason {
			t.Errorf("%s: %v, want reason %d", step, err, reason)
		}
		return
	}
	if err != nil {
		t.Errorf("%s: %v", step, err)
		return
	}
	if list, outcome := got(); list != content || outcome != want {
		t.Errorf("%s: %q, %s, want %q, %s", step, list, outcome, content, want)
	}
}

func TestStaleListsAreNotAskedForAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, time.Hour, store.Options{})
		defer f.Close()
		f.upstream.tags = func(url.Values) *upstream.TagPage { return &upstream.TagPage{Tags: oci.NewTagList("v1")} }
		if _, err := f.Tags(t.Context(), repository, nil); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		f.failWith(errSilent)
		if page, err := f.Tags(t.Context(), repository, nil); err != nil || page.Outcome != result.Stale {
			t.Fatalf("%+v, %v", page, err)
		}
		f.upstream.seen()
		if page, err := f.Tags(t.Context(), repository, nil); err != nil || page.Outcome != result.Stale {
			t.Errorf("%+v, %v", page, err)
		}
		f.wantCalls(t, "stale")
	})
}

func TestUpstreamWithoutReferrers(t *testing.T) {
	t.Parallel()
	f := newFixture(t, 0, store.Options{})
	for _, err := range []error{status(400), status(404), status(405), status(406), status(501), &upstream.Error{Op: "request", Err: upstream.ErrNoIndex}} {
		f.failWith(err)
		_, got := f.Referrers(t.Context(), repository, digest.FromString("subject"), nil)
		if failed, ok := errors.AsType[*result.Error](got); !ok || failed.Reason != result.NotFound {
			t.Errorf("%v: %v, want NotFound", err, got)
		}
	}
}

// An upstream with Retry-After must not be requested before, also for lists.
func TestListsRespectRetryAfter(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 10*time.Second, store.Options{})
		defer f.Close()
		f.upstream.tags = func(url.Values) *upstream.TagPage { return &upstream.TagPage{Tags: oci.NewTagList("v1")} }
		d := digest.FromString("subject")
		f.upstream.referrers = map[string][]byte{repository + "@" + d.String() + "?": []byte("index")}
		list := func(want result.Outcome) {
			t.Helper()
			if page, err := f.Tags(t.Context(), repository, nil); err != nil || page.Outcome != want {
				t.Errorf("tags: %+v, %v, want %s", page, err, want)
			}
			if page, err := f.Referrers(t.Context(), repository, d, nil); err != nil || page.Outcome != want {
				t.Errorf("referrers: %+v, %v, want %s", page, err, want)
			}
		}
		list(result.Miss)
		time.Sleep(10 * time.Second)
		f.failWith(&upstream.Error{Op: "request", StatusCode: http.StatusTooManyRequests, RetryAfter: time.Minute})
		f.upstream.seen()
		for range 6 {
			list(result.Stale)
			time.Sleep(10*time.Second - 1)
		}
		if calls := f.upstream.seen(); len(calls) != 2 {
			t.Errorf("calls within a minute: %v, want one for each list", calls)
		}
	})
}

// F1: the answer that the upstream has no referrers API must survive a failure of the upstream.
func TestMissingReferrersAPIIsRemembered(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, 10*time.Second, store.Options{})
		defer f.Close()
		check := func(step string, requests int) {
			t.Helper()
			_, err := f.Referrers(t.Context(), repository, digest.FromString("subject"), nil)
			if reasonOf(t, err) != result.NotFound {
				t.Errorf("%s: %v, want NotFound", step, err)
			}
			if calls := f.upstream.seen(); len(calls) != requests {
				t.Errorf("%s: calls %v, want %d", step, calls, requests)
			}
		}
		f.failWith(status(http.StatusMethodNotAllowed))
		check("first", 1)
		check("second", 1)
		check("third", 0)
		time.Sleep(10 * time.Second)
		check("fourth", 1)
		time.Sleep(10 * time.Second)
		f.failWith(errBroken)
		check("upstream unavailable", 1)
		check("upstream still unavailable", 0)
	})
}
