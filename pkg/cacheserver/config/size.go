// SPDX-License-Identifier: Apache-2.0

package config

import (
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"time"
)

// SizeFile is the current storage.size of a configuration file. It is the only field that a server reads again while it
// runs: a volume can grow without a restart of its cache. It is safe for concurrent use.
type SizeFile struct {
	path string
	log  *slog.Logger

	mu       sync.Mutex // guards the following fields
	modified time.Time
	length   int64
	size     Bytes
}

// NewSizeFile returns the size of the file under path, which has the given value now.
func NewSizeFile(path string, size Bytes, l *slog.Logger) *SizeFile {
	f := &SizeFile{path: path, log: l, size: size}
	if info, err := os.Stat(path); err == nil {
		f.modified, f.length = info.ModTime(), info.Size()
	}
	return f
}

// Get returns the size in bytes. It reads the file again if that has changed. An invalid or missing file is logged once,
// and the last valid size stays.
func (f *SizeFile) Get() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	info, err := os.Stat(f.path)
	if err != nil {
		info = nil
	}
	if !f.hasChanged(info) {
		return int64(f.size)
	}
	cfg, err := Load(f.path)
	if err != nil {
		f.log.Warn("Cannot read the size of the volume again", "error", err)
		return int64(f.size)
	}
	if cfg.Storage.Size != f.size {
		f.log.Info("The configured size has changed", "before", f.size.String(), "now", cfg.Storage.Size.String())
	}
	f.size = cfg.Storage.Size
	return int64(f.size)
}

// hasChanged compares the file with the one of the last call. Info is nil for a file that cannot be read.
func (f *SizeFile) hasChanged(info fs.FileInfo) bool {
	var modified time.Time
	var length int64
	if info != nil {
		modified, length = info.ModTime(), info.Size()
	}
	changed := !modified.Equal(f.modified) || length != f.length
	f.modified, f.length = modified, length
	return changed
}
