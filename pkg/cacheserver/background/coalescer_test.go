// SPDX-License-Identifier: Apache-2.0

package background

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
)

func TestCoalescer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		g := New()
		c := NewCoalescer[string, int](g)
		proceed := make(chan struct{})
		calls := 0
		slow := func(context.Context) (int, error) {
			calls++
			<-proceed
			return calls, nil
		}
		first, leave := context.WithCancelCause(t.Context())
		left := make(chan error, 1)
		go func() {
			_, err := c.Do(first, "a", slow)
			left <- err
		}()
		synctest.Wait()
		var clients sync.WaitGroup
		for range 10 {
			clients.Go(func() {
				if got, err := c.Do(t.Context(), "a", slow); got != 1 || err != nil {
					t.Errorf("got %d, %v", got, err)
				}
			})
		}
		cause := errors.New("the client has left")
		leave(cause)
		if err := <-left; !errors.Is(err, cause) {
			t.Errorf("the first client got %v", err)
		}
		if got, err := c.Do(t.Context(), "b", func(context.Context) (int, error) { return 5, errors.New("failed") }); got != 5 || err == nil {
			t.Errorf("another key: got %d, %v", got, err)
		}
		synctest.Wait()
		close(proceed)
		clients.Wait()
		if got, err := c.Do(t.Context(), "a", slow); got != 2 || err != nil {
			t.Errorf("a later call: got %d, %v", got, err)
		}
		g.Close()
		if _, err := c.Do(t.Context(), "a", slow); !errors.Is(err, ErrClosed) {
			t.Errorf("closed: got %v", err)
		}
		if len(c.calls) > 0 {
			t.Errorf("%d calls are left", len(c.calls))
		}
	})
}
