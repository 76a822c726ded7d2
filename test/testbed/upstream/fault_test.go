// SPDX-License-Identifier: Apache-2.0

package upstream_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/registry-cache/extension/test/testbed/images"
	"github.com/registry-cache/extension/test/testbed/upstream"
)

// result is what a client sees of a request.
type result struct {
	status int
	header http.Header
	body   []byte
	// err is that of the request or of reading the body.
	err error
}

// send sends a request that may end with an error, and reads what there is of the answer.
func send(ctx context.Context, client http.Client, method, url string) result {
	r, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return result{err: err}
	}
	response, err := client.Do(r)
	if err != nil {
		return result{err: err}
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return result{response.StatusCode, response.Header, body, err}
}

func breaks(t *testing.T, client *upstream.Client, faults ...upstream.Fault) {
	t.Helper()
	if err := client.Break(t.Context(), faults...); err != nil {
		t.Fatal(err)
	}
}

func TestFaultsSelectRequests(t *testing.T) {
	t.Parallel()
	registry := upstream.Start(t, upstream.Options{})
	admin := newClient(t, registry)
	for _, reference := range []string{"docker.io/team/app:v1", "docker.io/team/other:v1", "ghcr.io/team/app:v1"} {
		push(t, registry, reference, images.Spec{Seed: 1, LayerSizes: []int64{1000}})
	}
	layer := manifestOf(t, generated(t, images.Spec{Seed: 1, LayerSizes: []int64{1000}})).Layers[0].Digest.String()
	client := http.Client{Transport: transport(t, registry)}
	requests := []struct{ method, url string }{
		{"HEAD", "https://registry-1.docker.io/v2/team/app/manifests/v1"},
		{"GET", "https://registry-1.docker.io/v2/team/app/manifests/v1"},
		{"GET", "https://registry-1.docker.io/v2/team/app/blobs/" + layer},
		{"GET", "https://registry-1.docker.io/v2/team/other/manifests/v1"},
		{"GET", "https://ghcr.io/v2/team/app/manifests/v1"},
		{"GET", "https://ghcr.io/v2/"},
	}
	teapot := func(f upstream.Fault) upstream.Fault {
		f.Action, f.Status = upstream.Answer, http.StatusTeapot
		return f
	}
	for name, tc := range map[string]struct {
		faults []upstream.Fault
		want   []int
	}{
		"none":       {nil, []int{200, 200, 200, 200, 200, 200}},
		"everything": {[]upstream.Fault{teapot(upstream.Fault{})}, []int{418, 418, 418, 418, 418, 418}},
		"host":       {[]upstream.Fault{teapot(upstream.Fault{Host: "registry-1.docker.io"})}, []int{418, 418, 418, 418, 200, 200}},
		"repository": {[]upstream.Fault{teapot(upstream.Fault{Repository: "team/app"})}, []int{418, 418, 418, 200, 418, 200}},
		"kind":       {[]upstream.Fault{teapot(upstream.Fault{Kind: upstream.Manifest})}, []int{418, 418, 200, 418, 418, 200}},
		"method":     {[]upstream.Fault{teapot(upstream.Fault{Method: "HEAD"})}, []int{418, 200, 200, 200, 200, 200}},
		"all of them": {[]upstream.Fault{teapot(upstream.Fault{Host: "docker.io", Repository: "team/app", Kind: upstream.Blob, Method: "GET"})},
			[]int{200, 200, 418, 200, 200, 200}},
		"the first one counts": {[]upstream.Fault{teapot(upstream.Fault{Host: "ghcr.io"}), {Action: upstream.Answer, Status: 503}},
			[]int{503, 503, 503, 503, 418, 418}},
	} {
		breaks(t, admin, tc.faults...)
		var got []int
		for _, r := range requests {
			got = append(got, send(t.Context(), client, r.method, r.url).status)
		}
		if diff := cmp.Diff(tc.want, got); diff != "" {
			t.Errorf("%s: statuses (-want +got):\n%s", name, diff)
		}
	}
}

func TestFaultsOfHeaders(t *testing.T) {
	t.Parallel()
	registry := upstream.Start(t, upstream.Options{})
	admin := newClient(t, registry)
	push(t, registry, "docker.io/team/app:v1", images.Spec{Seed: 1, LayerSizes: []int64{1000}})
	client := http.Client{Transport: transport(t, registry)}
	url := registry.URL + "/v2/team/app/manifests/v1"
	last := func() upstream.Request {
		log := registry.Requests()
		return log[len(log)-1]
	}

	breaks(t, admin, upstream.Fault{Action: upstream.Answer, Status: 429, RetryAfter: 7})
	got := send(t.Context(), client, "GET", url)
	if got.status != 429 || got.header.Get("Retry-After") != "7" || !bytes.Contains(got.body, []byte(`"errors"`)) || last().Status != 429 {
		t.Errorf("the answer is %d, Retry-After %q, %s; logged %+v", got.status, got.header.Get("Retry-After"), got.body, last())
	}

	breaks(t, admin, upstream.Fault{Action: upstream.Cut})
	if got := send(t.Context(), client, "GET", url); got.err == nil || last().Status != 0 {
		t.Errorf("a cut request is answered %d, logged %+v", got.status, last())
	}

	breaks(t, admin, upstream.Fault{Action: upstream.Hang})
	impatient, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if got := send(impatient, client, "GET", url); !errors.Is(got.err, context.DeadlineExceeded) || last().Status != 0 {
		t.Errorf("a request that hangs is answered %d, %v, logged %+v", got.status, got.err, last())
	}

	breaks(t, admin)
	if got := send(t.Context(), client, "GET", url); got.status != 200 || got.err != nil {
		t.Errorf("without faults the answer is %d, %v", got.status, got.err)
	}
}

// readThenWait reads the first bytes of a body, cancels the request 300 ms later, and returns these bytes, the number of
// bytes that followed, and the error that ended the body. The wait starts after the first bytes, so that a slow machine
// does not shorten it.
func readThenWait(t *testing.T, client *http.Client, url string, first int64) (got []byte, rest int, err error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	got = make([]byte, first)
	if _, err := io.ReadFull(response.Body, got); err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(300*time.Millisecond, cancel)
	following, err := io.ReadAll(response.Body)
	return got, len(following), err
}

func TestFaultsOfBodies(t *testing.T) {
	t.Parallel()
	registry := upstream.Start(t, upstream.Options{TokenHosts: []string{"docker.io"}})
	admin := newClient(t, registry)
	image := push(t, registry, "quay.io/team/app:v1", images.Spec{Seed: 1, LayerSizes: []int64{100_000}})
	client := http.Client{Transport: transport(t, registry)}
	url := "https://quay.io/v2/team/app/blobs/" + manifestOf(t, image).Layers[0].Digest.String()
	right := send(t.Context(), client, "GET", url).body

	for _, after := range []int64{0, 1, 40_000, int64(len(right)) - 1} {
		breaks(t, admin, upstream.Fault{Action: upstream.Corrupt, AfterBytes: after})
		want := bytes.Clone(right)
		want[after] ^= 1
		if got := send(t.Context(), client, "GET", url); got.err != nil || !bytes.Equal(got.body, want) {
			t.Errorf("corrupt after %d bytes: %d bytes, %v, want one wrong byte", after, len(got.body), got.err)
		}
	}
	for _, after := range []int64{1, 40_000, int64(len(right)) - 1} {
		breaks(t, admin, upstream.Fault{Action: upstream.Cut, AfterBytes: after})
		if got := send(t.Context(), client, "GET", url); !errors.Is(got.err, io.ErrUnexpectedEOF) || !bytes.Equal(got.body, right[:after]) {
			t.Errorf("cut after %d bytes: %d bytes, %v", after, len(got.body), got.err)
		}

		breaks(t, admin, upstream.Fault{Action: upstream.Hang, AfterBytes: after})
		if got, rest, err := readThenWait(t, &client, url, after); !errors.Is(err, context.Canceled) || !bytes.Equal(got, right[:after]) || rest > 0 {
			t.Errorf("silent after %d bytes: %d bytes, then %d, %v", after, len(got), rest, err)
		}
	}

	breaks(t, admin, upstream.Fault{Action: upstream.Cut, AfterBytes: int64(len(right))})
	if got := send(t.Context(), client, "GET", url); got.err != nil || !bytes.Equal(got.body, right) {
		t.Errorf("a body that is not longer: %d bytes, %v", len(got.body), got.err)
	}
	breaks(t, admin, upstream.Fault{Action: upstream.Cut, AfterBytes: 1})
	if got := send(t.Context(), client, "HEAD", url); got.status != 200 || got.err != nil {
		t.Errorf("HEAD: %d, %v", got.status, got.err)
	}
	if got := send(t.Context(), client, "GET", "https://docker.io/v2/"); got.status != 401 || got.err != nil {
		t.Errorf("the challenge of a host with tokens: %d, %v", got.status, got.err)
	}
}

func TestFaultsAreListed(t *testing.T) {
	t.Parallel()
	admin := newClient(t, upstream.Start(t, upstream.Options{}))
	want := []upstream.Fault{{Host: "quay.io", Kind: upstream.Blob, Method: "GET", Action: upstream.Hang, AfterBytes: 7}}
	breaks(t, admin, want...)
	got, err := admin.Faults(t.Context())
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	breaks(t, admin)
	if got, err := admin.Faults(t.Context()); len(got) != 0 || err != nil {
		t.Errorf("after the end of all: %+v, %v", got, err)
	}
}

func TestBadFaultsChangeNothing(t *testing.T) {
	t.Parallel()
	admin := newClient(t, upstream.Start(t, upstream.Options{}))
	before := []upstream.Fault{{Action: upstream.Cut}}
	breaks(t, admin, before...)
	const prefix = "asking upstream for PUT /faults: 400 Bad Request: faults[1]."
	for want, fault := range map[string]upstream.Fault{
		`action: is "", must be hang, cut, corrupt or answer`:                                            {},
		`action: is "explode", must be hang, cut, corrupt or answer`:                                     {Action: "explode"},
		`kind: is "blobs", must be one of ["ping" "token" "manifest" "blob" "tags" "referrers" "other"]`: {Action: upstream.Cut, Kind: "blobs"},
		`method: is "get", must be GET or HEAD`:                                                          {Action: upstream.Cut, Method: "get"},
		`status: is 200, must be from 400 to 599`:                                                        {Action: upstream.Answer, Status: 200},
		`status: is only for the action answer`:                                                          {Action: upstream.Cut, Status: 500},
		`retryAfter: is -1, must not be negative`:                                                        {Action: upstream.Answer, Status: 429, RetryAfter: -1},
		`retryAfter: is only for the action answer`:                                                      {Action: upstream.Hang, RetryAfter: 1},
		`afterBytes: is -1, must not be negative`:                                                        {Action: upstream.Cut, AfterBytes: -1},
		`afterBytes: is not for the action answer`:                                                       {Action: upstream.Answer, Status: 500, AfterBytes: 1},
	} {
		if err := admin.Break(t.Context(), upstream.Fault{Action: upstream.Hang}, fault); err == nil || err.Error() != prefix+want {
			t.Errorf("got error %v\nwant %s", err, prefix+want)
		}
	}
	if after, err := admin.Faults(t.Context()); err != nil || !cmp.Equal(before, after) {
		t.Errorf("the faults are %+v, %v, want them as they were", after, err)
	}
}
