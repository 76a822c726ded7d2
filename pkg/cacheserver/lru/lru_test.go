// SPDX-License-Identifier: Apache-2.0

package lru

import (
	"fmt"
	"testing"
)

func TestMap(t *testing.T) {
	t.Parallel()
	const limit = 100
	m := New(limit, func(_ string, size int64) int64 { return size })
	check := func(step, keys string, size int64) {
		t.Helper()
		if got := fmt.Sprint(m.Keys()); got != keys || m.Size() != size {
			t.Errorf("%s: %s with size %d, want %s with %d", step, got, m.Size(), keys, size)
		}
	}
	check("empty", "[]", 0)
	m.Put("a", 40)
	m.Put("b", 30)
	m.Put("c", 30)
	check("full", "[a b c]", 100)
	if size, ok := m.Get("a"); size != 40 || !ok {
		t.Errorf("got %d, %t", size, ok)
	}
	m.Put("d", 10)
	check("the least recently used entry is evicted", "[c a d]", 80)
	if size, ok := m.Peek("c"); size != 30 || !ok {
		t.Errorf("got %d, %t", size, ok)
	}
	m.Put("e", 30)
	check("Peek is no use", "[a d e]", 80)
	m.Put("d", 30)
	check("replaced", "[a e d]", 100)
	m.Put("f", limit)
	check("one large entry", "[f]", 100)
	m.Put("g", limit+1)
	check("too large", "[f]", 100)
	m.Put("f", limit+1)
	check("replaced by a value that is too large", "[]", 0)
	m.Put("h", 1)
	m.Remove("h")
	m.Remove("h")
	check("removed", "[]", 0)
	if _, ok := m.Get("h"); ok {
		t.Error("a removed entry exists")
	}
}
