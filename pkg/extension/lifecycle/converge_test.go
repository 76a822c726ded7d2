// SPDX-License-Identifier: Apache-2.0

package lifecycle

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"sync"
	"testing"

	extensionsv1alpha1 "github.com/gardener/gardener/pkg/apis/extensions/v1alpha1"
	"github.com/go-logr/logr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/registry-cache/extension/pkg/extension"
)

// fault is how the n-th call of a method to either API goes wrong. A write that is refused leaves the same behind as an
// interruption one call earlier, so it is not a kind of its own.
type fault bool

const (
	none   fault = false
	atTurn fault = true // a read is refused; a write is carried out, its answer lost, and the controller told to stop
)

var errInjected = errors.New("injected")

// atOnce is how many runs of a method go on at once. Most of their time they wait.
const atOnce = 16

var allCalls = flag.Bool("all-calls", false, "let each API call go wrong in TestConvergence instead of every third one")

// attempts bounds how often a method is tried. One fault needs two.
const attempts = 4

// caller counts the calls of an actuator, and lets one go wrong.
type caller struct {
	kind fault
	at   int
	stop context.CancelFunc

	mu    sync.Mutex // guards what follows
	calls int
	hit   string
}

func (c *caller) call(what string, write bool, do func() error) error {
	c.mu.Lock()
	c.calls++
	mine := c.kind == atTurn && c.calls == c.at
	if mine {
		c.hit = what
	}
	c.mu.Unlock()
	if !mine {
		return do()
	}
	if !write {
		return errInjected
	}
	err := do()
	c.stop()
	return errors.Join(errInjected, err)
}

func (c *caller) funcs() interceptor.Funcs {
	name := func(verb string, obj any) string { return fmt.Sprintf("%s %T", verb, obj) }
	return interceptor.Funcs{
		Get: func(ctx context.Context, w client.WithWatch, key client.ObjectKey, obj client.Object, opts ...client.GetOption) error {
			return c.call(name("get", obj), false, func() error { return w.Get(ctx, key, obj, opts...) })
		},
		List: func(ctx context.Context, w client.WithWatch, list client.ObjectList, opts ...client.ListOption) error {
			return c.call(name("list", list), false, func() error { return w.List(ctx, list, opts...) })
		},
		Create: func(ctx context.Context, w client.WithWatch, obj client.Object, opts ...client.CreateOption) error {
			return c.call(name("create", obj), true, func() error { return w.Create(ctx, obj, opts...) })
		},
		Update: func(ctx context.Context, w client.WithWatch, obj client.Object, opts ...client.UpdateOption) error {
			return c.call(name("update", obj), true, func() error { return w.Update(ctx, obj, opts...) })
		},
		Patch: func(ctx context.Context, w client.WithWatch, obj client.Object, patch client.Patch, opts ...client.PatchOption) error {
			return c.call(name("patch", obj), true, func() error { return w.Patch(ctx, obj, patch, opts...) })
		},
		Delete: func(ctx context.Context, w client.WithWatch, obj client.Object, opts ...client.DeleteOption) error {
			return c.call(name("delete", obj), true, func() error { return w.Delete(ctx, obj, opts...) })
		},
		SubResourcePatch: func(ctx context.Context, w client.Client, subresource string, obj client.Object, patch client.Patch, opts ...client.SubResourcePatchOption) error {
			return c.call(name("patch "+subresource, obj), true, func() error { return w.SubResource(subresource).Patch(ctx, obj, patch, opts...) })
		},
		SubResourceUpdate: func(ctx context.Context, w client.Client, subresource string, obj client.Object, opts ...client.SubResourceUpdateOption) error {
			return c.call(name("update "+subresource, obj), true, func() error { return w.SubResource(subresource).Update(ctx, obj, opts...) })
		},
	}
}

type method func(*extension.Actuator, context.Context, logr.Logger, *extensionsv1alpha1.Extension) error

// Whichever call of a method fails, the next attempt goes on from there, and what comes out is the same. A further call
// of the method changes nothing. Every third call has its turn; with -all-calls, which takes 15 minutes, each one.
func TestConvergence(t *testing.T) {
	t.Parallel()
	one := func(s *shoot, size string) map[string]any { return cacheFor("one."+s.namespace+".example.com", size) }
	two := func(s *shoot) map[string]any { return cacheFor("two." + s.namespace + ".example.com") }
	three := func(s *shoot) map[string]any { return cacheFor("three." + s.namespace + ".example.com") }
	before := func(t *testing.T, s *shoot) {
		s.deploy(t, one(s, "1Gi"), two(s))
		s.waitUntilApplied(t, workloads)
	}
	deployed := func(t *testing.T, s *shoot, caches ...map[string]any) {
		t.Helper()
		s.requireDeployed(t, caches...)
	}
	for _, tc := range []struct {
		name    string
		prepare func(*testing.T, *shoot)
		do      method
		want    func(*testing.T, *shoot)
	}{
		{"new", func(t *testing.T, s *shoot) { s.ask(t, one(s, "1Gi")) }, (*extension.Actuator).Reconcile,
			func(t *testing.T, s *shoot) { deployed(t, s, one(s, "1Gi")) }},
		// One grows, one goes, one is new.
		{"change", func(t *testing.T, s *shoot) { before(t, s); s.ask(t, one(s, "2Gi"), three(s)) }, (*extension.Actuator).Reconcile,
			func(t *testing.T, s *shoot) { deployed(t, s, one(s, "2Gi"), three(s)) }},
		{"restore", func(t *testing.T, s *shoot) { before(t, s); s.moveToAnotherSeed(t) }, (*extension.Actuator).Restore,
			func(t *testing.T, s *shoot) { deployed(t, s, one(s, "1Gi"), two(s)) }},
		{"migrate", before, (*extension.Actuator).Migrate, func(t *testing.T, s *shoot) { s.requireGone(t, true, one(s, "1Gi"), two(s)) }},
		{"delete", before, (*extension.Actuator).Delete, func(t *testing.T, s *shoot) { s.requireGone(t, false, one(s, "1Gi"), two(s)) }},
		{"force-delete", before, (*extension.Actuator).ForceDelete, func(t *testing.T, s *shoot) {
			eventually(t, soon, func() error { return s.none(t) })
			s.requireGone(t, false, one(s, "1Gi"), two(s))
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			l := sharedLandscape(t)
			// One run without a fault tells how many calls there are.
			total := l.converge(t, tc.name+"-0", &caller{kind: none}, tc.prepare, tc.do, tc.want)
			t.Logf("%d calls", total)
			var running sync.WaitGroup
			places := make(chan struct{}, atOnce)
			stride := 3
			if *allCalls {
				stride = 1
			}
			for at := 1; at <= total; at += stride {
				places <- struct{}{}
				running.Go(func() {
					defer func() { <-places }()
					l.converge(t, fmt.Sprintf("%s-%d", tc.name, at), &caller{kind: atTurn, at: at}, tc.prepare, tc.do, tc.want)
				})
			}
			running.Wait()
		})
	}
}

// converge has a method go wrong once and returns how many calls the first attempt made.
func (l *landscape) converge(t *testing.T, name string, calls *caller, prepare func(*testing.T, *shoot), do method, want func(*testing.T, *shoot)) int {
	s := l.newShoot(t, name)
	s.log = logr.Discard()
	prepare(t, s)
	first := 0
	actuator := s.withInterceptor(calls.funcs())
	var err error
	for range attempts {
		ctx, cancel := context.WithCancel(t.Context())
		calls.stop = cancel
		err = do(actuator, ctx, s.log, s.extension(t))
		cancel()
		if first == 0 {
			first = calls.calls
		}
		if err == nil {
			break
		}
		if !errors.Is(err, errInjected) && !errors.Is(err, context.Canceled) {
			t.Errorf("%s, %s: got an error of another kind: %v", name, calls.hit, err)
		}
	}
	if err != nil {
		t.Errorf("%s, %s: still fails after %d attempts: %v", name, calls.hit, attempts, err)
		return first
	}
	want(t, s)

	// The first of two more brings the conditions in the status up to date: the objects in the Shoot are there now.
	var versions map[string]string
	for range 2 {
		versions = s.versions(t)
		if err := do(s.actuator, t.Context(), s.log, s.extension(t)); err != nil {
			t.Errorf("%s: once more: %v", name, err)
		}
	}
	equalVersions(t, versions, s.versions(t))
	want(t, s)
	s.remove(t)
	return first
}
