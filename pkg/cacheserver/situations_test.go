// SPDX-License-Identifier: Apache-2.0

package cacheserver_test

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/registry-cache/extension/pkg/cacheserver"
	"github.com/registry-cache/extension/pkg/cacheserver/volume"
	"github.com/registry-cache/extension/pkg/oci"
	"github.com/registry-cache/extension/test/testbed/upstream"
)

// Situations of a pull-through cache, and the test for each of them, over loopback:
//
//	a blob that is not there, wanted by many    TestManyClientsCostOneTransfer
//	its clients leave                           TestFetchGoesOnWithoutClients
//	the upstream breaks off                     TestUpstreamBreaksOff, TestUpstreamFaults
//	the content is another one                  TestWrongBytesAreNeitherCompletedNorKept, TestUpstreamFaults
//	Range of a blob that is not stored          TestRangeIsServedWhileTheBlobComes, TestRanges
//	HEAD of a blob that is not stored           TestHeadOfBlobDownloadsNothing, TestUpstreamWithoutHeadOfBlobs
//	a tag that is new, moves, is deleted        TestSecondPullNeedsNoBlobs, TestTagMoves, TestDeletedTag
//	a tag that the upstream cannot tell         TestTagsWithoutUpstream, TestUpstreamFaults
//	an upstream that refuses, limits, fails     TestUpstreamFaults
//	an upstream that is silent                  TestUpstreamThatDoesNotAnswer, TestUpstreamThatGoesSilent, TestUpstreamFaults
//	no upstream at start                        TestStartWithoutUpstream, TestTagsWithoutUpstream
//	something else is missing than said         TestMissingManifestWithAnyErrorBody
//	new credentials, a new CA, a proxy          TestCredentialsAndCAAreRotated, TestProxy
//	a volume that is full, or fails             TestFullVolume, TestFullVolumeDoesNotReachPulls, TestCachedTagsOnAFullVolume, TestEachWriteFails
//	a volume in a bad state                     TestTornFiles
//	kill -9                                     TestKilledInTheMiddleOfAFetch
//	tags, referrers                             TestTagsPageByPage, TestReferrers

func TestFetchGoesOnWithoutClients(t *testing.T) {
	t.Parallel()
	u := newFaulty(t, upstream.Options{})
	content := u.contents[u.layer]
	half := make(chan struct{})
	proceed := sync.OnceFunc(func() { close(half) })
	defer proceed()
	u.inject(onBlobs(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", itoa(len(content)))
		w.Write(content[:len(content)/2])
		http.NewResponseController(w).Flush()
		<-half
		w.Write(content[len(content)/2:])
	}))
	c := start(t, u.config(t), cacheserver.Options{})
	resp := c.open(t, "GET", u.blob())
	if _, err := io.CopyN(io.Discard, resp.Body, 1000); err != nil {
		t.Fatal(err)
	}
	if err := resp.Body.Close(); err != nil { // which ends the connection
		t.Fatal(err)
	}
	eventually(t, "the server notices", func() bool { return len(c.accessLines(t)) == 1 })
	proceed()
	c.settle(t)
	u.inject(func(http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) })
	u.check(t, c, "GET", u.blob(), fine)
	checkStore(t, c.root)
}

func TestRangeIsServedWhileTheBlobComes(t *testing.T) {
	t.Parallel()
	u := newFaulty(t, upstream.Options{})
	content := u.contents[u.layer]
	half := make(chan struct{})
	proceed := sync.OnceFunc(func() { close(half) })
	defer proceed()
	var transfers atomic.Int64
	u.inject(onBlobs(func(w http.ResponseWriter, _ *http.Request) {
		transfers.Add(1)
		w.Header().Set("Content-Length", itoa(len(content)))
		w.Write(content[:len(content)/2])
		http.NewResponseController(w).Flush()
		<-half
		w.Write(content[len(content)/2:])
	}))
	c := start(t, u.config(t), cacheserver.Options{})
	for _, span := range []struct {
		header, contentRange string
		first, last          int
	}{
		{"bytes=500-999", "bytes 500-999/", 500, 999},
		{"bytes=0-0", "bytes 0-0/", 0, 0},
	} {
		// It ends although the second half has not come.
		got := c.do(t, "GET", u.blob(), "Range", span.header)
		if got.status != http.StatusPartialContent || got.err != nil || !bytes.Equal(got.body, content[span.first:span.last+1]) {
			t.Errorf("%s: %d, %d bytes, %v", span.header, got.status, len(got.body), got.err)
		}
		if want := span.contentRange + itoa(len(content)); got.header.Get("Content-Range") != want {
			t.Errorf("%s: Content-Range %q, want %q", span.header, got.header.Get("Content-Range"), want)
		}
	}
	tail := make(chan response, 1)
	go func() {
		defer close(tail)
		tail <- c.do(t, "GET", u.blob(), "Range", "bytes=-100")
	}()
	eventually(t, "it waits for the last bytes", func() bool { return c.metric(t, "registry_cache_followers_total") == 2 })
	proceed()
	if got := <-tail; got.err != nil || got.status != http.StatusPartialContent || !bytes.Equal(got.body, content[len(content)-100:]) {
		t.Errorf("the last bytes: %d, %d bytes, %v", got.status, len(got.body), got.err)
	}
	c.settle(t)
	if got := transfers.Load(); got != 1 {
		t.Errorf("%d transfers", got)
	}
}

// Amazon's public registry answers 401 to HEAD of blobs that it sends in answer to GET.
func TestUpstreamWithoutHeadOfBlobs(t *testing.T) {
	t.Parallel()
	u := newFaulty(t, upstream.Options{})
	const other = "other/repository"
	image := u.push(t, tag, 1)
	if err := u.Push(t.Context(), "docker.io/"+other+":"+tag, image); err != nil {
		t.Fatal(err)
	}
	u.inject(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodHead || !strings.Contains(r.URL.Path, "/blobs/") {
			return false
		}
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	c := start(t, u.config(t), cacheserver.Options{})
	sent := func() (bytes int64) {
		for _, q := range u.Requests() {
			bytes += q.Bytes
		}
		return bytes
	}
	u.check(t, c, "HEAD", u.blob(), fine)
	if got := sent(); got != 1 {
		t.Errorf("HEAD of a blob cost %d bytes", got)
	}
	u.ResetRequests()
	u.check(t, c, "GET", u.blob(), fine)
	c.settle(t)
	u.ResetRequests()
	got := c.doIn(t, other, "GET", u.blob())
	if got.status != 200 || got.err != nil || !bytes.Equal(got.body, u.contents[u.layer]) {
		t.Errorf("the blob of another repository: %d, %d bytes, %v", got.status, len(got.body), got.err)
	}
	if got := sent(); got != 1 {
		t.Errorf("a blob that is there cost %d bytes", got)
	}
	// One that does not have it must not get it.
	if got := c.doIn(t, "library/unknown", "GET", u.blob()); got.status != http.StatusNotFound {
		t.Errorf("a repository without the blob: %d", got.status)
	}
	checkStore(t, c.root)
}

func TestStartWithoutUpstream(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name    string
		handler http.HandlerFunc // nil: no process listens
		want    want
	}{
		{"nobody listens", nil, unavailable},
		{"no answer", func(_ http.ResponseWriter, r *http.Request) { hang(r) }, silent},
		{"503", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) }, unavailable},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			u := newFaulty(t, upstream.Options{})
			u.inject(func(w http.ResponseWriter, r *http.Request) bool {
				test.handler(w, r)
				return true
			})
			u.headerTimeout = 500 * time.Millisecond
			cfg := u.config(t)
			if test.handler == nil {
				gone := httptest.NewServer(nil)
				cfg.Upstream.RemoteURL = gone.URL
				gone.Close()
			}
			began := time.Now()
			c := start(t, cfg, cacheserver.Options{})
			if got := c.debug(t, "/readyz"); got.status != 200 || time.Since(began) > 10*time.Second {
				t.Errorf("ready: %d after %s", got.status, time.Since(began))
			}
			u.check(t, c, "GET", u.tag(), test.want)
			u.check(t, c, "GET", u.blob(), test.want)
			if test.handler == nil {
				return
			}
			u.inject(nil)
			if err := c.pull(t.Context(), tag); err != nil {
				t.Errorf("the upstream is there: %v", err)
			}
		})
	}
}

// Upstreams put anything into the body of a 404.
func TestMissingManifestWithAnyErrorBody(t *testing.T) {
	t.Parallel()
	u := newFaulty(t, upstream.Options{})
	c := start(t, u.config(t), cacheserver.Options{})
	for _, body := range []string{"", "404 page not found", `{"errors":[`, `{"errors":[{"code":"DENIED","message":"x"}]}`, strings.Repeat("<br>", 1<<20)} {
		u.inject(func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Content-Type", "text/plain")
			w.WriteHeader(http.StatusNotFound)
			io.WriteString(w, body)
			return true
		})
		for _, name := range []string{u.tag(), u.manifest(), u.blob()} {
			u.check(t, c, "GET", name, missing)
		}
	}
}

// A volume without a free byte has all that a warm pull needs, and is in the way of no cold one.
func TestCachedTagsOnAFullVolume(t *testing.T) {
	t.Parallel()
	u := newFaulty(t, upstream.Options{})
	faulty := &faultyVolume{err: syscall.ENOSPC}
	cfg := u.config(t)
	cfg.Storage.HighWatermark, cfg.Storage.LowWatermark = 100, 99 // however full this machine is
	c := start(t, cfg, cacheserver.Options{Volume: volume.Options{Fault: faulty.inject}})
	if err := c.pull(t.Context(), tag); err != nil {
		t.Fatal(err)
	}
	c.settle(t)
	u.requests()
	faulty.fail()
	if err := c.pull(t.Context(), tag); err != nil {
		t.Errorf("warm pull: %v", err)
	}
	if diff := cmp.Diff([]string{"HEAD manifest v1"}, u.requests()); diff != "" {
		t.Errorf("warm pull: -want +got\n%s", diff)
	}
	if got := c.metric(t, "registry_cache_storage_errors_total"); got != 0 {
		t.Errorf("a warm pull tried to write %v times", got)
	}
	u.push(t, "v2", 2)
	moved := u.push(t, tag, 3)
	for _, tag := range []string{"v2", tag} {
		if err := c.pull(t.Context(), tag); err != nil {
			t.Errorf("cold pull of %s: %v", tag, err)
		}
	}
	if got := c.do(t, "GET", "manifests/"+digestOf(t, moved)); got.status != 200 || got.header.Get("Content-Type") != oci.MediaTypeManifest && got.header.Get("Content-Type") != oci.MediaTypeDockerManifest {
		t.Errorf("a manifest that cannot be stored: %d, %v", got.status, got.header)
	}
	if got := c.metric(t, "registry_cache_storage_errors_total"); got == 0 {
		t.Error("the volume was never full, so this shows nothing")
	}
	faulty.heal()
	if err := c.pull(t.Context(), tag); err != nil {
		t.Error(err)
	}
	c.settle(t)
	checkStore(t, c.root)
}

// An upstream that needs more than five seconds for each tag is slow, not unavailable: upstreams B05.
func TestSlowUpstream(t *testing.T) {
	t.Parallel()
	u := newFaulty(t, upstream.Options{})
	var delay atomic.Bool
	u.inject(func(_ http.ResponseWriter, r *http.Request) bool {
		if delay.Load() && r.Method == http.MethodHead {
			<-time.After(5500 * time.Millisecond) // the time that the upstream needs
		}
		return false
	})
	c := start(t, u.config(t), cacheserver.Options{})
	delay.Store(true)
	u.check(t, c, "HEAD", u.tag(), fine)
	if state := c.state(t); state.Reachable != "yes" {
		t.Errorf("state %+v", state)
	}
	delay.Store(false)
	if err := c.pull(t.Context(), tag); err != nil {
		t.Fatal(err)
	}
	moved := u.push(t, tag, 2)
	delay.Store(true)
	got := c.do(t, "HEAD", u.tag())
	if got.status != 200 || got.header.Get("Docker-Content-Digest") != digestOf(t, moved) || got.header.Get("Warning") != "" {
		t.Errorf("a tag that moved: %d %v", got.status, got.header)
	}
}

// HEAD of a blob is answered with 404 until the blob was sent to GET, as registries that are caches do: upstreams B02.
func TestUpstreamThatKnowsABlobAfterGet(t *testing.T) {
	t.Parallel()
	u := newFaulty(t, upstream.Options{})
	const other = "other/repository"
	if err := u.Push(t.Context(), "docker.io/"+other+":"+tag, u.push(t, tag, 1)); err != nil {
		t.Fatal(err)
	}
	u.inject(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodHead || !strings.Contains(r.URL.Path, "/blobs/") {
			return false
		}
		w.WriteHeader(http.StatusNotFound)
		return true
	})
	c := start(t, u.config(t), cacheserver.Options{})
	u.check(t, c, "HEAD", u.blob(), fine)
	u.check(t, c, "GET", u.blob(), fine)
	c.settle(t)
	u.ResetRequests()
	got := c.doIn(t, other, "GET", u.blob())
	if got.status != 200 || got.err != nil || !bytes.Equal(got.body, u.contents[u.layer]) {
		t.Errorf("the blob of another repository: %d, %d bytes, %v", got.status, len(got.body), got.err)
	}
	if got := c.doIn(t, "library/unknown", "GET", u.blob()); got.status != http.StatusNotFound {
		t.Errorf("a repository without the blob: %d", got.status)
	}
}
