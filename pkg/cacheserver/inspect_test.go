// SPDX-License-Identifier: Apache-2.0

package cacheserver_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/registry-cache/extension/pkg/cacheserver"
	"github.com/registry-cache/extension/pkg/cacheserver/evict"
	"github.com/registry-cache/extension/pkg/cacheserver/inspect"
	"github.com/registry-cache/extension/test/testbed/upstream"
)

// TestInspectWhileServing looks at the volume while images are pulled through the server, and after that.
func TestInspectWhileServing(t *testing.T) {
	t.Parallel()
	u := newOrigin(t, upstream.Options{})
	const images = 8
	for n := range images {
		u.push(t, fmt.Sprint("v", n), uint64(n))
	}
	cfg := u.config(t)
	c := start(t, cfg, cacheserver.Options{})
	limits := evict.Limits{TTL: time.Duration(cfg.GarbageCollection.TTL), HighWatermark: cfg.Storage.HighWatermark, LowWatermark: cfg.Storage.LowWatermark}
	look := func() *inspect.Report {
		t.Helper()
		r, err := inspect.Inspect(t.Context(), c.root, limits, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range r.Orphans {
			if (o.Kind == inspect.Corrupt || o.Kind == inspect.Links) && o.Path != "docker/registry/v2" {
				t.Errorf("while it is used: %+v", o)
			}
		}
		return r
	}
	pulled := make(chan error, 1)
	go func() {
		for n := range images {
			if err := c.pull(t.Context(), fmt.Sprint("v", n)); err != nil {
				pulled <- err
				return
			}
		}
		pulled <- nil
	}()
	for len(pulled) == 0 {
		look()
	}
	if err := <-pulled; err != nil {
		t.Fatal(err)
	}
	// A blob that was read completely may not be stored completely yet.
	if err := c.stop(); err != nil {
		t.Fatal(err)
	}
	r := look()
	if len(r.Images) != images || len(r.Orphans) > 0 || r.Totals.Tags != images || r.Totals.EvictableObjects > 0 || r.Totals.LastUsesRecorded.IsZero() {
		t.Errorf("totals %+v, orphans %+v", r.Totals, r.Orphans)
	}
	for _, i := range r.Images {
		if i.Repository != repository || i.Objects != (inspect.Count{Present: 4, Referenced: 4}) || i.SizeBytes < layerSize*3/2 || time.Since(i.LastUse) > time.Minute {
			t.Errorf("%+v", i)
		}
	}
}
