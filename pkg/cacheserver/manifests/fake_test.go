// SPDX-License-Identifier: Apache-2.0

package manifests

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	"go.uber.org/goleak"

	"github.com/registry-cache/extension/pkg/cacheserver/background"
	"github.com/registry-cache/extension/pkg/cacheserver/result"
	"github.com/registry-cache/extension/pkg/cacheserver/store"
	"github.com/registry-cache/extension/pkg/cacheserver/upstream"
	"github.com/registry-cache/extension/pkg/oci"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const repository = "library/alpine"

// fakeUpstream returns manifests by repository and reference.
type fakeUpstream struct {
	mu        sync.Mutex // guards all fields
	calls     []string
	manifests map[string][]byte // by repository:tag and repository@digest
	// fail is called before each answer; an error is the answer.
	fail func(call string) error
	// headWithoutDigest removes the digest from answers to HEAD.
	headWithoutDigest bool
}

func newFakeUpstream() *fakeUpstream { return &fakeUpstream{manifests: map[string][]byte{}} }

// addManifest moves the tag to a manifest.
func (u *fakeUpstream) addManifest(repository, tag, content string) digest.Digest {
	u.mu.Lock()
	defer u.mu.Unlock()
	d := digest.FromString(content)
	u.manifests[repository+"@"+d.String()] = []byte(content)
	u.manifests[repository+":"+tag] = []byte(content)
	return d
}

func (u *fakeUpstream) remove(names ...string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, name := range names {
		delete(u.manifests, name)
	}
}

func (u *fakeUpstream) change(f func()) {
	u.mu.Lock()
	defer u.mu.Unlock()
	f()
}

// seen returns the calls since its last call, such as "HEAD repository:tag".
func (u *fakeUpstream) seen() []string {
	u.mu.Lock()
	defer u.mu.Unlock()
	calls := u.calls
	u.calls = nil
	return calls
}

func (u *fakeUpstream) answer(method, name string) ([]byte, error) {
	u.mu.Lock()
	call := method + " " + name
	u.calls = append(u.calls, call)
	content, ok := u.manifests[name]
	content, fail := slices.Clone(content), u.fail
	u.mu.Unlock()
	if fail != nil {
		if err := fail(call); err != nil {
			return nil, err
		}
	}
	if !ok {
		return nil, status(http.StatusNotFound)
	}
	return content, nil
}

func (u *fakeUpstream) HeadManifest(_ context.Context, repository string, ref oci.Reference) (upstream.Descriptor, error) {
	content, err := u.answer("HEAD", ref.In(repository))
	if err != nil {
		return upstream.Descriptor{}, err
	}
	described := upstream.Descriptor{MediaType: oci.MediaTypeManifest, Digest: digest.FromBytes(content), Size: int64(len(content))}
	if u.headWithoutDigest {
		described.Digest = ""
	}
	return described, nil
}

func (u *fakeUpstream) Manifest(_ context.Context, repository string, ref oci.Reference) (*upstream.Manifest, error) {
	content, err := u.answer("GET", ref.In(repository))
	if err != nil {
		return nil, err
	}
	return &upstream.Manifest{MediaType: oci.MediaTypeManifest, Digest: digest.FromBytes(content), Content: content}, nil
}

func status(code int) error { return &upstream.Error{Op: "request", StatusCode: code} }

var errBroken = &upstream.Error{Op: "request", Err: io.ErrUnexpectedEOF}

// fixture contains the manifests of a fake upstream.
type fixture struct {
	*Manifests
	upstream *fakeUpstream
	store    *store.Store
	root     string
	group    *background.Group
}

func newFixture(t *testing.T, revalidateAfter time.Duration, o store.Options) *fixture {
	t.Helper()
	f := &fixture{upstream: newFakeUpstream(), root: t.TempDir()}
	f.open(t, o, Options{RevalidateAfter: revalidateAfter, MaxStale: 24 * time.Hour})
	return f
}

// restart returns manifests that share only the upstream and the volume with f.
func (f *fixture) restart(t *testing.T, o Options) *fixture {
	t.Helper()
	restarted := &fixture{upstream: f.upstream, root: f.root}
	restarted.open(t, store.Options{}, o)
	return restarted
}

func (f *fixture) open(t *testing.T, so store.Options, o Options) {
	t.Helper()
	s, err := store.Open(f.root, so)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	f.store, f.group = s, background.New()
	f.Manifests = New(f.group, s, f.upstream, o)
	t.Cleanup(f.group.Close)
}

// leftovers returns the number of unfinished files.
func (f *fixture) leftovers(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(f.root, "registry-cache/partial"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return len(entries)
}

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

// want requests a manifest and compares the answer, and the calls of the upstream.
func (f *fixture) want(t *testing.T, step string, ref oci.Reference, content string, outcome result.Outcome, calls ...string) {
	t.Helper()
	m, err := f.Get(t.Context(), repository, ref)
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
	_, err := f.Get(t.Context(), repository, ref)
	if explained, ok := errors.AsType[*result.Error](err); !ok || explained.Reason != reason {
		t.Errorf("%s: %v, want reason %d", step, err, reason)
	}
	f.upstream.seen()
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

// reasonOf returns the reason of an error, -1 for another error.
func reasonOf(err error) result.Reason {
	explained, ok := errors.AsType[*result.Error](err)
	if !ok {
		return -1
	}
	return explained.Reason
}
