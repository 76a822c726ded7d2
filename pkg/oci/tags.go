// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"strings"
)

// maxTagLength is the length limit of a tag in the distribution specification, in characters.
const maxTagLength = 128

// ErrTagsInvalid is wrapped by the errors of ParseTags.
var ErrTagsInvalid = errors.New("invalid list of tags")

// TagList is an immutable list of tags. It is stored as JSON, because a list of strings needs up to ten times the memory:
// a response of 4 MiB can contain a million tags. The zero value is the empty list.
type TagList struct {
	json string // a JSON list of strings; empty for the empty list
}

// NewTagList returns a list with the tags in this order.
func NewTagList(tags ...string) TagList {
	if len(tags) == 0 {
		return TagList{}
	}
	encoded, err := json.Marshal(tags)
	if err != nil {
		panic(err) // strings can always be encoded
	}
	return TagList{string(encoded)}
}

// largeTags is the size of a list, in bytes, from which at most maxLargeParsers lists are parsed at the same time, in the
// whole process. Parsing needs the memory of the list twice.
const (
	largeTags       = 256 << 10
	maxLargeParsers = 2
)

// parsers has an element for each large list that is being parsed.
var parsers = make(chan struct{}, maxLargeParsers)

// ParseTags returns the field tags of a response of a registry: {"name":"<repository>","tags":["v1"]}. A missing field
// and null are empty lists. Errors wrap ErrTagsInvalid; reasons are invalid JSON, and an element that is not a string of
// 1 to 128 bytes. The characters of a tag are not restricted: some registries accept more than the specification.
func ParseTags(content []byte) (TagList, error) {
	if len(content) >= largeTags {
		parsers <- struct{}{}
		defer func() { <-parsers }()
	}
	var fields struct {
		Tags TagList `json:"tags"`
	}
	if err := json.Unmarshal(content, &fields); err != nil {
		return TagList{}, fmt.Errorf("%w: %w", ErrTagsInvalid, err)
	}
	return fields.Tags, nil
}

// UnmarshalJSON implements json.Unmarshaler for ParseTags.
func (l *TagList) UnmarshalJSON(data []byte) error {
	if isNull(data) {
		*l = TagList{}
		return nil
	}
	elements, err := openList(bytes.NewReader(data))
	if err != nil {
		return err
	}
	count := 0
	for ; elements.More(); count++ {
		var tag string
		if err := elements.Decode(&tag); err != nil {
			return err
		}
		if len(tag) == 0 || len(tag) > maxTagLength {
			return fmt.Errorf("tag %d: must have 1 to %d bytes, but has %d", count, maxTagLength, len(tag))
		}
	}
	if count == 0 {
		*l = TagList{}
		return nil
	}
	*l = TagList{string(data)}
	return nil
}

// JSON returns the list as a JSON list of strings.
func (l TagList) JSON() string {
	if l.json == "" {
		return "[]"
	}
	return l.json
}

// Size returns the memory of the list, in bytes.
func (l TagList) Size() int { return len(l.json) }

// All returns the tags in their order.
func (l TagList) All() iter.Seq[string] {
	return func(yield func(string) bool) {
		for tag := range l.elements() {
			if !yield(tag) {
				return
			}
		}
	}
}

// span is the position of an element in the JSON text.
type span struct{ start, end int64 }

// elements returns the tags with their positions, which start behind the previous element.
func (l TagList) elements() iter.Seq2[string, span] {
	return func(yield func(string, span) bool) {
		elements, err := openList(strings.NewReader(l.JSON()))
		for err == nil && elements.More() {
			var tag string
			start := elements.InputOffset()
			err = elements.Decode(&tag)
			if err == nil && !yield(tag, span{start, elements.InputOffset()}) {
				return
			}
		}
		if err != nil {
			panic(fmt.Sprintf("oci: a list of tags has become invalid: %v", err)) // ParseTags has decoded it before
		}
	}
}

// Page returns at most limit tags that follow the tag last. A negative limit means no limit. An empty last, and a last
// that the list does not contain, mean the beginning of the list. next is the last tag of the page if further tags
// follow, otherwise empty.
func (l TagList) Page(last string, limit int) (page TagList, next string) {
	if last == "" && limit < 0 {
		return l, ""
	}
	var text span
	count, newest, found := 0, "", last == ""
	for tag, at := range l.elements() {
		if !found && tag == last {
			found, count, newest, next = true, 0, "", ""
			continue
		}
		if count == limit {
			next = newest
			if found {
				break
			}
			continue
		}
		if count == 0 {
			text.start = at.start
		}
		text.end = at.end
		newest = tag
		count++
	}
	if count == 0 {
		return TagList{}, ""
	}
	elements := strings.TrimLeft(l.json[text.start:text.end], ", \t\r\n")
	return TagList{"[" + elements + "]"}, next
}
