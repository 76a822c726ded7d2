// SPDX-License-Identifier: Apache-2.0

package background

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
)

func TestClose(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := New()
		release := make(chan struct{})
		cause := make(chan error, 1)
		if !g.Go(func(ctx context.Context) {
			<-ctx.Done()
			cause <- context.Cause(ctx)
			<-release
		}) {
			t.Fatal("an open group rejects a goroutine")
		}
		closed := make(chan struct{})
		go func() {
			g.Close()
			close(closed)
		}()
		if err := <-cause; !errors.Is(err, ErrClosed) {
			t.Errorf("the context ended with %v, want ErrClosed", err)
		}
		if g.Go(func(context.Context) { t.Error("a closed group runs a goroutine") }) {
			t.Error("a closed group accepts a goroutine")
		}
		synctest.Wait()
		select {
		case <-closed:
			t.Fatal("Close returns before the goroutine")
		default:
		}
		close(release)
		<-closed
		g.Close()
	})
}

func TestWait(t *testing.T) {
	t.Parallel()
	g := New()
	defer g.Close()
	finished := false
	g.Go(func(context.Context) {
		g.Go(func(context.Context) { finished = true })
	})
	g.Wait()
	if !finished {
		t.Error("Wait returned before the second goroutine")
	}
	if !g.Go(func(context.Context) {}) {
		t.Error("the group is unusable after Wait")
	}
}
