// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"fmt"
	"io/fs"
	"time"
)

// TagTime returns the time of the last call of SetTag that changed the tag, or of TouchTag. It is the modification time of
// the tag's link, so it survives a restart. Errors wrap ErrNotFound if the tag is not stored.
func (s *Store) TagTime(repository, tag string) (time.Time, error) {
	info, err := s.fs.Stat(s.layout.TagLink(repository, tag))
	if errors.Is(err, fs.ErrNotExist) {
		err = ErrNotFound
	}
	if err != nil {
		return time.Time{}, fmt.Errorf("reading time of tag %s:%s: %w", repository, tag, err)
	}
	return info.ModTime(), nil
}

// TouchTag sets the time of a stored tag to t. The time is not flushed to the disk.
func (s *Store) TouchTag(repository, tag string, t time.Time) error {
	if err := s.fs.Chtimes(s.layout.TagLink(repository, tag), time.Time{}, t); err != nil {
		return fmt.Errorf("setting time of tag %s:%s: %w", repository, tag, err)
	}
	return nil
}
