// SPDX-License-Identifier: Apache-2.0

package upstream_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/crane"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"github.com/registry-cache/extension/test/testbed/images"
	"github.com/registry-cache/extension/test/testbed/upstream"
)

func TestClientGeneratesImages(t *testing.T) {
	t.Parallel()
	registry := upstream.Start(t, upstream.Options{})
	client := newClient(t, registry)
	spec := images.Spec{Seed: 42, LayerSizes: []int64{2000, 0}, Architecture: "amd64"}
	digest, err := client.Generate(t.Context(), "ghcr.io/team/fresh:v7", spec)
	if err != nil {
		t.Fatal(err)
	}
	want, err := images.Generate(spec)
	if err != nil {
		t.Fatal(err)
	}
	if digest != digestOf(t, want) {
		t.Errorf("the server made %s, want %s as everywhere", digest, digestOf(t, want))
	}
	pulled, err := crane.Pull("ghcr.io/team/fresh:v7", crane.WithTransport(transport(t, registry)))
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Image(pulled); err != nil {
		t.Error(err)
	}
}

func TestClientReadsTheLog(t *testing.T) {
	t.Parallel()
	registry := upstream.Start(t, upstream.Options{})
	client := newClient(t, registry)
	pull := http.Client{Transport: transport(t, registry)}
	for range 3 {
		do(t, pull, "GET", registry.URL+"/v2/", nil)
	}
	all, err := client.Requests(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(registry.Requests(), all, always); diff != "" || len(all) != 3 {
		t.Errorf("%d requests over HTTP (-server +client):\n%s", len(all), diff)
	}
	since, err := client.Requests(t.Context(), all[1].ID)
	if err != nil || len(since) != 1 || since[0].ID != all[2].ID {
		t.Errorf("after ID %d: %+v, %v; want ID %d", all[1].ID, since, err, all[2].ID)
	}
	if err := client.ResetRequests(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left, err := client.Requests(t.Context(), 0); len(left) != 0 || err != nil {
		t.Errorf("after a reset: %+v, %v", left, err)
	}
}

// What a client sees is never faster than the setting. How much slower it is depends on the machine; the exact figures
// are the shaper's tests.
func TestClientShapes(t *testing.T) {
	t.Parallel()
	registry := upstream.Start(t, upstream.Options{})
	client := newClient(t, registry)
	image := push(t, registry, "docker.io/team/app:v1", images.Spec{Seed: 1, LayerSizes: []int64{200_000}})
	pull := http.Client{Transport: transport(t, registry)}
	layer := manifestOf(t, image).Layers[0]
	fetch := func() time.Duration {
		start := time.Now()
		do(t, pull, "GET", registry.URL+"/v2/team/app/blobs/"+layer.Digest.String(), nil)
		return time.Since(start)
	}
	atLeast := func(name string, shaping upstream.Shaping, want time.Duration) time.Duration {
		t.Helper()
		if err := client.Shape(t.Context(), shaping); err != nil {
			t.Fatal(err)
		}
		took := fetch()
		if took < want {
			t.Errorf("%s: %d bytes took %s, want at least %s", name, layer.Size, took, want)
		}
		return took
	}
	atLeast("latency", upstream.Shaping{Latency: 150 * time.Millisecond}, 150*time.Millisecond)
	// 200 kB need 400 ms and 100 ms; two slices of 20 ms come for free.
	slow := atLeast("bandwidth", upstream.Shaping{BytesPerSecond: 500_000}, 360*time.Millisecond)
	atLeast("more bandwidth", upstream.Shaping{BytesPerSecond: 2_000_000}, 60*time.Millisecond)
	if free := atLeast("no limit", upstream.Shaping{}, 0); free > slow {
		t.Errorf("without a limit it took %s, with one %s", free, slow)
	}
}

func TestClientErrors(t *testing.T) {
	t.Parallel()
	registry := upstream.Start(t, upstream.Options{})
	client := newClient(t, registry)
	for name, tc := range map[string]struct {
		do   func(context.Context) error
		want string
	}{
		"negative latency": {func(ctx context.Context) error {
			return client.Shape(ctx, upstream.Shaping{Latency: -time.Second})
		}, "asking upstream for PUT /shaping: 400 Bad Request: latency: is -1s, must not be negative"},
		"negative bandwidth": {func(ctx context.Context) error {
			return client.Shape(ctx, upstream.Shaping{BytesPerSecond: -1})
		}, "asking upstream for PUT /shaping: 400 Bad Request: bytesPerSecond: is -1, must not be negative; 0 means no limit"},
		"no layer": {func(ctx context.Context) error {
			_, err := client.Generate(ctx, "ghcr.io/a/b:v1", images.Spec{})
			return err
		}, "asking upstream for POST /images: 400 Bad Request: layerSizes: has 0 entries, must have 1 to 127"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if err := tc.do(t.Context()); err == nil || err.Error() != tc.want {
				t.Errorf("got error %v\nwant %s", err, tc.want)
			}
		})
	}
	_, err := client.Generate(t.Context(), "no tag", images.Spec{LayerSizes: []int64{1}})
	if err == nil || !strings.Contains(err.Error(), "400 Bad Request: reference: ") {
		t.Errorf("a bad reference gives the error %v", err)
	}
}

func TestStopEndsAnswers(t *testing.T) {
	t.Parallel()
	registry := upstream.Start(t, upstream.Options{})
	image := push(t, registry, "docker.io/team/app:v1", images.Spec{Seed: 1, LayerSizes: []int64{1 << 20}})
	if err := registry.Shape(upstream.Shaping{BytesPerSecond: 100_000}); err != nil {
		t.Fatal(err)
	}
	layer := manifestOf(t, image).Layers[0]
	client := http.Client{Transport: transport(t, registry)}
	response, err := client.Get(registry.URL + "/v2/team/app/blobs/" + layer.Digest.String())
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	registry.Stop()
	buffer := make([]byte, layer.Size)
	n := 0
	for err == nil {
		var read int
		read, err = response.Body.Read(buffer)
		n += read
	}
	if int64(n) >= layer.Size {
		t.Errorf("the client got all %d bytes", n)
	}
	if log := registry.Requests(); log[0].Status != 200 || log[0].Bytes >= layer.Size || log[0].Bytes < int64(n) {
		t.Errorf("the log has %+v after the client got %d of %d bytes", log[0], n, layer.Size)
	}
	if response, err := client.Get(registry.URL + "/v2/"); err == nil {
		response.Body.Close()
		t.Error("the stopped server answers")
	}
	if err := newClient(t, registry).Healthy(t.Context()); err == nil || errors.Is(err, context.Canceled) {
		t.Errorf("the stopped server is healthy: %v", err)
	}
}

func newClient(t *testing.T, registry *upstream.Instance) *upstream.Client {
	t.Helper()
	client := upstream.NewClient(registry.AdminURL)
	t.Cleanup(client.Close)
	return client
}
