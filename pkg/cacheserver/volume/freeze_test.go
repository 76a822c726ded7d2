// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// A file system that the kernel has frozen is detected by a probe and by a call, and so is the end of the freeze. The call in
// progress leaves no file. The test needs root, loop devices and the tools of ext4.
func TestFrozenFileSystem(t *testing.T) {
	t.Parallel()
	root, image := t.TempDir(), filepath.Join(t.TempDir(), "image")
	run := func(name string, arguments ...string) error {
		out, err := exec.CommandContext(context.WithoutCancel(t.Context()), name, arguments...).CombinedOutput()
		if err != nil {
			t.Logf("%s %v: %v: %s", name, arguments, err, out)
		}
		return err
	}
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, 16<<20); err != nil {
		t.Fatal(err)
	}
	if run("mkfs.ext4", "-q", image) != nil || run("mount", "-o", "loop", image, root) != nil {
		t.Skip("no ext4 file system can be mounted")
	}
	defer func() {
		if err := run("umount", root); err != nil {
			t.Error(err)
		}
	}()
	// A failed test must not leave a frozen file system, which cannot be unmounted. An error means that it is not frozen.
	defer func() {
		_ = exec.CommandContext(context.WithoutCancel(t.Context()), "fsfreeze", "--unfreeze", root).Run()
	}()

	f := New(root, Options{Timeout: 5 * time.Second, ProbeInterval: 300 * time.Millisecond, ProbeTimeout: time.Second})
	defer f.Close()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		f.Monitor(ctx)
		close(ended)
	}()
	defer func() { <-ended }()
	defer cancel()
	within := func(what string, limit time.Duration, state State) {
		t.Helper()
		began := time.Now()
		for f.Health().State != state {
			if time.Since(began) > time.Minute {
				t.Fatalf("%s: %+v", what, f.Health())
			}
			time.Sleep(time.Millisecond) // polls a state of the kernel
		}
		if took := time.Since(began); took > limit {
			t.Errorf("%s: detected after %s, want %s", what, took, limit)
		}
	}
	for range 2 {
		within("start", 5*time.Second, OK)
		if run("fsfreeze", "--freeze", root) != nil {
			t.Skip("the file system cannot be frozen")
		}
		thaw := func() error { return run("fsfreeze", "--unfreeze", root) }
		began := time.Now()
		if _, err := f.Create(root, "file-"); !errors.Is(err, ErrHung) {
			t.Errorf("got %v, want ErrHung", err)
		}
		// The probe ends the call before its deadline of 5 s.
		if took := time.Since(began); took > 4*time.Second {
			t.Errorf("the call took %s", took)
		}
		within("freeze", time.Second, Hung)
		if err := thaw(); err != nil {
			t.Fatal(err)
		}
		within("end of the freeze", 2*time.Second, OK)
		for began := time.Now(); f.workers.blocked.Load() > 0 && time.Since(began) < time.Minute; {
			time.Sleep(time.Millisecond)
		}
		if left, err := filepath.Glob(filepath.Join(root, "file-*")); err != nil || len(left) > 0 {
			t.Errorf("the abandoned call has left %v, %v", left, err)
		}
	}
}
