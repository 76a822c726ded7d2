// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseTags(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, content string
		want          []string
		err           error
	}{
		{"tags", `{"name":"a","tags":["v1", "v\u0032" ,"_"]}`, []string{"v1", "v2", "_"}, nil},
		{"spaces", "{\"tags\":\n[ \"v1\"\n,\t\"v2\"]}", []string{"v1", "v2"}, nil},
		{"no tags", `{"name":"a"}`, nil, nil},
		{"null", `{"tags":null}`, nil, nil},
		{"empty list", `{"tags":[ ]}`, nil, nil},
		{"long tag", `{"tags":["` + strings.Repeat("x", 128) + `"]}`, []string{strings.Repeat("x", 128)}, nil},
		{"longer tag", `{"tags":["` + strings.Repeat("x", 129) + `"]}`, nil, ErrTagsInvalid},
		{"empty tag", `{"tags":["v1",""]}`, nil, ErrTagsInvalid},
		{"a number", `{"tags":[1]}`, nil, ErrTagsInvalid},
		{"an object", `{"tags":{"a":1}}`, nil, ErrTagsInvalid},
		{"not JSON", `<html>`, nil, ErrTagsInvalid},
	} {
		got, err := ParseTags([]byte(test.content))
		if !errors.Is(err, test.err) {
			t.Errorf("%s: error %v, want %v", test.name, err, test.err)
		}
		if diff := cmp.Diff(test.want, slices.Collect(got.All())); diff != "" {
			t.Errorf("%s: -want +got\n%s", test.name, diff)
		}
	}
}

func TestPage(t *testing.T) {
	t.Parallel()
	list, err := ParseTags([]byte(`{"tags":[ "b","a" , "v1.10","a"]}`))
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		last      string
		limit     int
		want      string
		next      string
		condition string
	}{
		{"", -1, `[ "b","a" , "v1.10","a"]`, "", "no limit"},
		{"", 0, `[]`, "", "limit 0"},
		{"", 2, `["b","a"]`, "a", "first page"},
		{"", 4, `["b","a" , "v1.10","a"]`, "", "limit equals the number of tags"},
		{"b", 2, `["a" , "v1.10"]`, "v1.10", "second page"},
		{"v1.10", 2, `["a"]`, "", "last page"},
		{"a", -1, `["v1.10","a"]`, "", "after the first of two equal tags"},
		{"c", 1, `["b"]`, "b", "unknown last"},
		{"c", -1, `["b","a" , "v1.10","a"]`, "", "unknown last without limit"},
	} {
		page, next := list.Page(test.last, test.limit)
		if page.JSON() != test.want || next != test.next {
			t.Errorf("%s: got %s, %q, want %s, %q", test.condition, page.JSON(), next, test.want, test.next)
		}
	}
	if page, next := list.Page("a", 1); page.JSON() != `["v1.10"]` || next != "v1.10" {
		t.Errorf("got %s, %q", page.JSON(), next)
	}
	if page, next := (TagList{}).Page("a", 1); page.JSON() != "[]" || next != "" {
		t.Errorf("empty list: got %s, %q", page.JSON(), next)
	}
	if got := NewTagList("v1", "v2").JSON(); got != `["v1","v2"]` || NewTagList().JSON() != "[]" {
		t.Errorf("got %s", got)
	}
}

// Each page of a valid list is a valid list, and all pages together are the list.
func FuzzParseTags(f *testing.F) {
	f.Add([]byte(`{"tags":["b", "a","b"]}`), 1)
	f.Add([]byte(`{"tags":["\u0000\""],"Tags":null}`), 2)
	f.Fuzz(func(t *testing.T, content []byte, limit int) {
		list, err := ParseTags(content)
		if err != nil {
			return
		}
		all := slices.Collect(list.All())
		page, next := list.Page("", limit)
		parsed, err := ParseTags([]byte(`{"tags":` + page.JSON() + `}`))
		if err != nil {
			t.Fatalf("%q: the page %s is invalid: %v", content, page.JSON(), err)
		}
		want := all
		if limit >= 0 && limit < len(all) {
			want = all[:limit]
		}
		if got := slices.Collect(parsed.All()); !slices.Equal(got, want) || next != "" && next != want[len(want)-1] {
			t.Errorf("%q, limit %d: got %q, next %q, want %q", content, limit, got, next, want)
		}
	})
}
