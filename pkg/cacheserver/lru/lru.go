// SPDX-License-Identifier: Apache-2.0

// Package lru limits the memory of the cache server's maps. A Map evicts the least recently used entries when the sum of
// the entry sizes exceeds a limit.
package lru

import (
	"math"

	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// Map is a map with a limited size. It is not safe for concurrent use: its owner holds a lock, because most changes
// consist of several calls.
type Map[K comparable, V any] struct {
	maxSize int64
	sizeOf  func(K, V) int64
	entries *simplelru.LRU[K, V]
	size    int64
}

// New returns an empty map. sizeOf returns the size of an entry, at least 1; it must return the same size for the same
// entry. The unit of maxSize and of the sizes is the caller's choice, for example bytes.
func New[K comparable, V any](maxSize int64, sizeOf func(K, V) int64) *Map[K, V] {
	m := &Map[K, V]{maxSize: maxSize, sizeOf: sizeOf}
	// The library limits the number of entries, which is not needed here.
	entries, err := simplelru.NewLRU(math.MaxInt, func(key K, value V) { m.size -= sizeOf(key, value) })
	if err != nil {
		panic(err) // only for a limit below 1
	}
	m.entries = entries
	return m
}

// Get returns the value of a key and makes it the most recently used one.
func (m *Map[K, V]) Get(key K) (V, bool) { return m.entries.Get(key) }

// Peek returns the value of a key without using it.
func (m *Map[K, V]) Peek(key K) (V, bool) { return m.entries.Peek(key) }

// Put sets the value of a key and makes it the most recently used one. It evicts other entries as necessary. An entry that
// exceeds the limit alone is not stored; its previous value is removed.
func (m *Map[K, V]) Put(key K, value V) {
	m.entries.Remove(key)
	size := m.sizeOf(key, value)
	if size > m.maxSize {
		return
	}
	for m.size+size > m.maxSize {
		m.entries.RemoveOldest()
	}
	m.entries.Add(key, value)
	m.size += size
}

// Remove removes a key.
func (m *Map[K, V]) Remove(key K) { m.entries.Remove(key) }

// Keys returns all keys, the least recently used one first.
func (m *Map[K, V]) Keys() []K { return m.entries.Keys() }

// Size returns the sum of the sizes of all entries.
func (m *Map[K, V]) Size() int64 { return m.size }
