// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"syscall"
	"testing"

	"github.com/registry-cache/extension/pkg/cacheserver/volume"
)

// Only a volume that is full, or fails, makes a reservation fail. Other errors are no problem of the volume.
func TestReserveErrors(t *testing.T) {
	t.Parallel()
	for injected, want := range map[error]bool{
		nil: true, syscall.EINVAL: true, syscall.EPERM: true, syscall.ENODEV: true, syscall.ENOSYS: true, syscall.EOPNOTSUPP: true, syscall.ESPIPE: true,
		syscall.ENOSPC: false, syscall.EDQUOT: false, syscall.EIO: false, syscall.ESTALE: false, syscall.EROFS: false,
	} {
		t.Run(fmt.Sprint(injected), func(t *testing.T) {
			t.Parallel()
			root := t.TempDir()
			files := volume.New(root, volume.Options{Fault: func(op volume.Op, _ string) error {
				if op == volume.OpAllocate {
					return injected
				}
				return nil
			}})
			t.Cleanup(files.Close)
			p, _, err := open(t, root, Options{Volume: files}).Receive(layerDigest)
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			err = p.Reserve(t.Context(), 4096)
			if want && err != nil || !want && !errors.Is(err, injected) {
				t.Errorf("got %v", err)
			}
			if health := files.Health(); (health.State == volume.OK) != want {
				t.Errorf("the volume is %+v", health)
			}
		})
	}
}

// Reserving does not change the size of the file.
func TestAllocate(t *testing.T) {
	t.Parallel()
	s := open(t, t.TempDir(), Options{})
	f, err := s.create("x")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := allocate(f, 4096); err != nil {
		t.Error(err)
	}
	if _, err := io.WriteString(f, "content"); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 100)
	n, err := f.ReadAt(got, 0)
	if err != io.EOF || string(got[:n]) != "content" {
		t.Errorf("the file has %s and %v", strconv.Quote(string(got[:n])), err)
	}
}
