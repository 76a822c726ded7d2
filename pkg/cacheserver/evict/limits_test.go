// SPDX-License-Identifier: Apache-2.0

package evict

import (
	"testing"
	"time"
)

var limits = Limits{TTL: time.Hour, HighWatermark: 90, LowWatermark: 80}

// withSize returns limits with a size in bytes.
func withSize(size int64) Limits {
	l := limits
	l.Size = size
	return l
}

func TestNeed(t *testing.T) {
	t.Parallel()
	// own returns a usage of a file system that contains only content of the cache.
	own := func(used, limit int64) Usage {
		return Usage{FileSystem: Amount{used, limit}, Own: used, Removable: used}
	}
	for name, test := range map[string]struct {
		limits Limits
		usage  Usage
		full   bool
		want   Need
	}{
		"not measured":                    {limits, Usage{}, false, Need{}},
		"not measured, full":              {limits, Usage{}, true, Need{}},
		"below the high watermark":        {limits, own(899, 1000), false, Need{}},
		"at the high watermark":           {limits, own(900, 1000), false, Need{Bytes: 100}},
		"full":                            {limits, own(1000, 1000), false, Need{Bytes: 200}},
		"full at 81 %":                    {limits, own(810, 1000), true, Need{Bytes: 10}},
		"large numbers":                   {limits, own(1<<62, 1<<62), false, Need{Bytes: 1<<62 - (1<<62/100*80 + 1<<62%100*80/100)}},
		"eviction disabled":               {Limits{HighWatermark: 90, LowWatermark: 80}, own(1000, 1000), true, Need{}},
		"others use 5 %":                  {limits, Usage{FileSystem: Amount{950, 1000}, Own: 900, Removable: 900}, false, Need{Bytes: 150}},
		"others use 85 %":                 {limits, Usage{FileSystem: Amount{950, 1000}, Own: 100, Removable: 100}, false, Need{}},
		"directories use most":            {limits, Usage{FileSystem: Amount{950, 1000}, Own: 100, Removable: 900}, false, Need{Bytes: 150}},
		"size reached":                    {withSize(100), Usage{FileSystem: Amount{500, 1000}, Own: 90, Removable: 90}, false, Need{Bytes: 10}},
		"size reached on a full disk":     {withSize(100), Usage{FileSystem: Amount{950, 1000}, Own: 95, Removable: 95}, false, Need{Bytes: 15}},
		"size larger than the disk":       {withSize(1 << 50), own(950, 1000), false, Need{Bytes: 150}},
		"inodes at the high watermark":    {limits, Usage{Inodes: Amount{900, 1000}, Objects: 220}, false, Need{Objects: 25}},
		"others use the inodes":           {limits, Usage{Inodes: Amount{950, 1000}, Objects: 10}, false, Need{}},
		"no error, but 40 objects":        {limits, Usage{FileSystem: Amount{1, 1000}, Objects: 40}, false, Need{}},
		"hidden limit, 40 objects":        {limits, Usage{FileSystem: Amount{1, 1000}, Objects: 40}, true, Need{Objects: 2}},
		"hidden limit, 3 objects":         {limits, Usage{FileSystem: Amount{1, 1000}, Objects: 3}, true, Need{Objects: 1}},
		"hidden limit, no object":         {limits, Usage{FileSystem: Amount{1, 1000}}, true, Need{}},
		"full because of others":          {limits, Usage{FileSystem: Amount{990, 1000}, Own: 100, Removable: 100, Objects: 40}, true, Need{}},
		"others use 98 %, hidden limit":   {limits, Usage{FileSystem: Amount{980, 1000}, Own: 100, Removable: 100, Objects: 40}, true, Need{Objects: 2}},
		"no inodes because of others":     {limits, Usage{FileSystem: Amount{1, 1000}, Inodes: Amount{1000, 1000}, Objects: 20}, true, Need{}},
		"hidden limit, eviction disabled": {Limits{}, Usage{FileSystem: Amount{1, 1000}, Objects: 40}, true, Need{}},
	} {
		if got := test.limits.Need(test.usage, test.full); got != test.want {
			t.Errorf("%s: got %+v, want %+v", name, got, test.want)
		}
	}
}

func TestFits(t *testing.T) {
	t.Parallel()
	full := Usage{FileSystem: Amount{1000, 1000}}
	for size, want := range map[int64]bool{0: true, 800: true, 801: false} {
		if got := limits.Fits(full, size); got != want {
			t.Errorf("%d of 1000 bytes: got %t, want %t", size, got, want)
		}
	}
	if withSize(100).Fits(full, 81) || !withSize(100).Fits(Usage{FileSystem: Amount{0, 1 << 60}}, 80) {
		t.Error("the size does not limit objects")
	}
	if !limits.Fits(Usage{}, 1<<60) {
		t.Error("an object does not fit although the limit is unknown")
	}
}

func TestEffective(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		size  int64
		usage Usage
		want  Amount
	}{
		"no size":                       {0, Usage{FileSystem: Amount{5, 10}, Own: 3}, Amount{5, 10}},
		"large file system":             {10, Usage{FileSystem: Amount{500, 1 << 60}, Own: 3}, Amount{3, 10}},
		"file system not measured":      {10, Usage{Own: 3}, Amount{3, 10}},
		"file system smaller than size": {1000, Usage{FileSystem: Amount{5, 10}, Own: 3}, Amount{5, 10}},
		"others fill the file system":   {100, Usage{FileSystem: Amount{990, 1000}, Own: 3}, Amount{990, 1000}},
	} {
		if got := withSize(test.size).Effective(test.usage); got != test.want {
			t.Errorf("%s: got %+v, want %+v", name, got, test.want)
		}
	}
}
