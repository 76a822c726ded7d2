// SPDX-License-Identifier: Apache-2.0

// Package workspace tells where the testbed keeps its files, and reports progress.
package workspace

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// Root returns the absolute path of the checkout: the nearest folder at or above the working directory that holds
// the go.mod of this module and the chart.
func Root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for at := dir; ; at = filepath.Dir(at) {
		if _, err := os.Stat(filepath.Join(at, "charts", "gardener-extension-registry-cache")); err == nil {
			if _, err := os.Stat(filepath.Join(at, "go.mod")); err == nil {
				return at, nil
			}
		}
		if at == filepath.Dir(at) {
			return "", fmt.Errorf("no checkout of registry-cache at or above %s: run the command in one", dir)
		}
	}
}

// StateDir returns <checkout>/.testbed, made if missing: what belongs to the running cluster (kubeconfig, request
// log, artifacts). "make kind-down" removes it.
func StateDir() (string, error) {
	root, err := Root()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(root, ".testbed")
	return dir, os.MkdirAll(dir, 0o755)
}

// Kubeconfig returns the path of the cluster's kubeconfig, <checkout>/.testbed/kubeconfig.
func Kubeconfig() (string, error) {
	dir, err := StateDir()
	return filepath.Join(dir, "kubeconfig"), err
}

// CacheDir returns $REGISTRY_CACHE_TESTBED_CACHE, or registry-cache-testbed in the user's cache directory, made if
// missing: what is expensive to make and depends on versions only (root file system, binaries, image archives).
func CacheDir() (string, error) {
	dir := os.Getenv("REGISTRY_CACHE_TESTBED_CACHE")
	if dir == "" {
		base, err := os.UserCacheDir()
		if err != nil {
			return "", err
		}
		dir = filepath.Join(base, "registry-cache-testbed")
	}
	return dir, os.MkdirAll(dir, 0o755)
}

// Progress prints one line for each step with the time since the start and the step's own duration. Its methods may
// be called from several goroutines.
type Progress struct {
	mu    sync.Mutex // guards out
	out   io.Writer
	start time.Time
}

// NewProgress returns a Progress that writes to out.
func NewProgress(out io.Writer) *Progress { return &Progress{out: out, start: time.Now()} }

// Printf prints a line, prefixed with the elapsed time.
func (p *Progress) Printf(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprintf(p.out, "%7.1fs  %s\n", time.Since(p.start).Seconds(), fmt.Sprintf(format, args...))
}

// Step runs do and prints its title when it starts and its duration when it ends. The error is returned with the
// title as context.
func (p *Progress) Step(title string, do func() error) error {
	start := time.Now()
	p.Printf("%s ...", title)
	if err := do(); err != nil {
		return fmt.Errorf("%s: %w", title, err)
	}
	p.Printf("%s: done in %.1fs", title, time.Since(start).Seconds())
	return nil
}

// Remove deletes StateDir.
func Remove() error {
	root, err := Root()
	if err != nil {
		return err
	}
	return os.RemoveAll(filepath.Join(root, ".testbed"))
}
