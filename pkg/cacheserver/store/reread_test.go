// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/registry-cache/extension/pkg/cacheserver/volume"
)

// A verification is repeated as long as its error proves nothing about the content.
func TestConclude(t *testing.T) {
	t.Parallel()
	notDropped := fmt.Errorf("%w: %w", errNotDropped, syscall.EROFS)
	repeat := func(err error, n int) (errs []error) {
		for range n {
			errs = append(errs, err)
		}
		return append(errs, nil)
	}
	for name, test := range map[string]struct {
		results []error // of the attempts
		want    error
		calls   int
		took    time.Duration
	}{
		"intact":                 {[]error{nil}, nil, 1, 0},
		"deleted":                {[]error{fs.ErrNotExist, nil}, fs.ErrNotExist, 1, 0},
		"not readable by us":     {[]error{syscall.EACCES, nil}, syscall.EACCES, 1, 0},
		"corrupt, not deletable": {[]error{notDropped, nil}, syscall.EROFS, 1, 0},
		"volume fails briefly":   {repeat(syscall.EIO, 3), nil, 4, 7 * time.Second},
		"directory":              {[]error{syscall.EISDIR, nil}, syscall.EISDIR, 1, 0},
		"loop of links":          {[]error{syscall.ELOOP, nil}, syscall.ELOOP, 1, 0},
		"no memory":              {repeat(syscall.ENOMEM, 1), nil, 2, time.Second},
		"volume fails long":      {repeat(syscall.EIO, 30), syscall.EIO, 20, (1 + 2 + 4 + 8 + 16 + 14*30) * time.Second},
		"volume hangs long":      {repeat(volume.ErrHung, 30), nil, 31, (1 + 2 + 4 + 8 + 16 + 25*30) * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				calls, began := 0, time.Now()
				err := Conclude(t.Context(), func() error {
					calls++
					return test.results[calls-1]
				})
				if took := time.Since(began); !errors.Is(err, test.want) || calls != test.calls || took != test.took {
					t.Errorf("%v after %d calls and %s, want %v, %d and %s", err, calls, took, test.want, test.calls, test.took)
				}
			})
		})
	}
}

func TestConcludeEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeoutCause(t.Context(), 10*time.Second, errors.New("the server stops"))
		defer cancel()
		err := Conclude(ctx, func() error { return volume.ErrHung })
		if !errors.Is(err, context.Cause(ctx)) || err == nil {
			t.Errorf("got %v", err)
		}
	})
}
