// SPDX-License-Identifier: Apache-2.0

package pullthrough

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	"go.uber.org/goleak"

	"github.com/registry-cache/extension/pkg/cacheserver/download"
	"github.com/registry-cache/extension/pkg/cacheserver/result"
	"github.com/registry-cache/extension/pkg/cacheserver/store"
	"github.com/registry-cache/extension/pkg/cacheserver/upstream"
	"github.com/registry-cache/extension/pkg/oci"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const repository = "library/alpine"

// fakeUpstream returns content by repository. Tests replace its answers.
type fakeUpstream struct {
	mu        sync.Mutex // guards all fields
	calls     []string
	blobs     map[string][]byte // by repository@digest
	manifests map[string][]byte // by repository:tag and repository@digest
	referrers map[string][]byte // by repository@digest?query
	tags      func(query url.Values) *upstream.TagPage
	// fail is called before each answer; an error is the answer.
	fail func(call string) error
	// silent delays each answer until the end of its context.
	silent bool
	// body returns the response with the content from an offset; nil sends all of it.
	body func(ctx context.Context, content []byte, offset int64) *upstream.Blob
	// headWithoutDigest leaves the digest out of answers to HEAD.
	headWithoutDigest bool
}

func newFakeUpstream() *fakeUpstream {
	return &fakeUpstream{blobs: map[string][]byte{}, manifests: map[string][]byte{}}
}

func (u *fakeUpstream) addBlob(repository string, content []byte) digest.Digest {
	u.mu.Lock()
	defer u.mu.Unlock()
	d := digest.FromBytes(content)
	u.blobs[repository+"@"+d.String()] = content
	return d
}

func (u *fakeUpstream) change(f func()) {
	u.mu.Lock()
	defer u.mu.Unlock()
	f()
}

// seen returns the calls since the last time, such as "HEAD repository:tag".
func (u *fakeUpstream) seen() []string {
	u.mu.Lock()
	defer u.mu.Unlock()
	calls := u.calls
	u.calls = nil
	return calls
}

func (u *fakeUpstream) count(call string) int {
	u.mu.Lock()
	defer u.mu.Unlock()
	n := 0
	for _, c := range u.calls {
		if c == call {
			n++
		}
	}
	return n
}

func (u *fakeUpstream) answer(ctx context.Context, contents map[string][]byte, method, name string) ([]byte, error) {
	u.mu.Lock()
	call := method + " " + name
	u.calls = append(u.calls, call)
	content, ok := contents[name]
	content, fail, silent := slices.Clone(content), u.fail, u.silent
	u.mu.Unlock()
	if silent {
		<-ctx.Done()
		return nil, context.Cause(ctx)
	}
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

func (u *fakeUpstream) HeadManifest(ctx context.Context, repository string, ref oci.Reference) (upstream.Descriptor, error) {
	content, err := u.answer(ctx, u.manifests, "HEAD", ref.In(repository))
	if err != nil {
		return upstream.Descriptor{}, err
	}
	described := upstream.Descriptor{MediaType: oci.MediaTypeManifest, Digest: digest.FromBytes(content), Size: int64(len(content))}
	if u.headWithoutDigest {
		described.Digest = ""
	}
	return described, nil
}

func (u *fakeUpstream) Manifest(ctx context.Context, repository string, ref oci.Reference) (*upstream.Manifest, error) {
	content, err := u.answer(ctx, u.manifests, "GET", ref.In(repository))
	if err != nil {
		return nil, err
	}
	return &upstream.Manifest{MediaType: oci.MediaTypeManifest, Digest: digest.FromBytes(content), Content: content}, nil
}

func (u *fakeUpstream) HeadBlob(ctx context.Context, repository string, d digest.Digest) (int64, error) {
	content, err := u.answer(ctx, u.blobs, "HEAD", repository+"@"+d.String())
	return int64(len(content)), err
}

func (u *fakeUpstream) Blob(ctx context.Context, repository string, d digest.Digest, from upstream.Range) (*upstream.Blob, error) {
	method, offset := "GET", from.Offset
	if offset > 0 {
		method = fmt.Sprintf("GET from %d", offset)
	}
	content, err := u.answer(ctx, u.blobs, method, repository+"@"+d.String())
	if err != nil {
		return nil, err
	}
	u.mu.Lock()
	body := u.body
	u.mu.Unlock()
	if body != nil {
		blob := body(ctx, content, offset)
		blob.Offset, blob.Ranges = offset, true
		return blob, nil
	}
	return whole(content, offset), nil
}

func (u *fakeUpstream) Tags(ctx context.Context, repository string, query url.Values) (*upstream.TagPage, error) {
	if _, err := u.answer(ctx, map[string][]byte{repository: nil}, "TAGS", repository); err != nil {
		return nil, err
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.tags(query), nil
}

func (u *fakeUpstream) Referrers(ctx context.Context, repository string, d digest.Digest, query url.Values) (*upstream.Referrers, error) {
	name := repository + "@" + d.String()
	content, err := u.answer(ctx, u.referrers, "REFERRERS", name+"?"+query.Encode())
	if err != nil {
		return nil, err
	}
	return &upstream.Referrers{Index: content}, nil
}

func status(code int) error { return &upstream.Error{Op: "request", StatusCode: code} }

var errSilent = &upstream.Error{Op: "request", Err: os.ErrDeadlineExceeded}

var errBroken = &upstream.Error{Op: "request", Err: io.ErrUnexpectedEOF}

func whole(content []byte, offset int64) *upstream.Blob {
	return &upstream.Blob{ReadCloser: io.NopCloser(bytes.NewReader(content[offset:])), Offset: offset, Ranges: true, Size: int64(len(content))}
}

// cut sends n bytes and then err.
func cut(content []byte, offset, n int64, err error) *upstream.Blob {
	end := min(offset+n, int64(len(content)))
	body := io.MultiReader(bytes.NewReader(content[offset:end]), failingReader{err})
	return &upstream.Blob{ReadCloser: io.NopCloser(body), Size: int64(len(content))}
}

type failingReader struct{ err error }

func (r failingReader) Read([]byte) (int, error) { return 0, r.err }

// gate sends the first n bytes, and the rest when it is opened.
type gate struct{ opened chan struct{} }

func newGate() gate { return gate{make(chan struct{})} }

func (g gate) body(n int) func(context.Context, []byte, int64) *upstream.Blob {
	return func(ctx context.Context, content []byte, offset int64) *upstream.Blob {
		body := io.MultiReader(bytes.NewReader(content[offset:n]), gatedReader{ctx, g.opened}, bytes.NewReader(content[n:]))
		return &upstream.Blob{ReadCloser: io.NopCloser(body), Size: int64(len(content))}
	}
}

type gatedReader struct {
	ctx    context.Context
	opened chan struct{}
}

func (r gatedReader) Read([]byte) (int, error) {
	select {
	case <-r.opened:
		return 0, io.EOF
	case <-r.ctx.Done():
		return 0, context.Cause(r.ctx)
	}
}

// fixture is a cache in front of a fake upstream.
type fixture struct {
	*Cache
	store    *store.Store
	upstream *fakeUpstream
	root     string
}

func newFixture(t *testing.T, revalidateAfter time.Duration, o store.Options) *fixture {
	t.Helper()
	root := t.TempDir()
	s, err := store.Open(root, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	u := newFakeUpstream()
	c := New(s, u, Options{RevalidateAfter: revalidateAfter, MaxStale: 24 * time.Hour})
	t.Cleanup(c.Close)
	return &fixture{Cache: c, store: s, upstream: u, root: root}
}

// settle returns when nothing is being fetched.
func (f *fixture) settle() { f.background.Wait() }

// stored returns the blob as the store has it.
func (f *fixture) storedContent(repository string, d digest.Digest) ([]byte, error) {
	blob, err := f.store.Blob(repository, d)
	if err != nil {
		return nil, err
	}
	defer blob.Close()
	return io.ReadAll(blob)
}

// leftovers returns the number of files that are neither committed nor removed.
func (f *fixture) leftovers(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(f.root, "registry-cache/partial"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return len(entries)
}

func (f *fixture) read(t *testing.T, repository string, d digest.Digest) ([]byte, result.Outcome, error) {
	t.Helper()
	b, err := f.Blob(t.Context(), repository, d, download.Part{})
	if err != nil {
		return nil, "", err
	}
	defer func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}()
	if err := b.Await(t.Context(), 0); err != nil {
		return nil, b.Outcome(), err
	}
	content, err := io.ReadAll(b)
	return content, b.Outcome(), err
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

func isNotFound(err error) bool {
	failed, ok := errors.AsType[*upstream.Error](err)
	return ok && failed.NotFound()
}

func isTemporary(err error) bool {
	failed, ok := errors.AsType[*upstream.Error](err)
	return ok && failed.Temporary()
}
