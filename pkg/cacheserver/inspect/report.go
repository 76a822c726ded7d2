// SPDX-License-Identifier: Apache-2.0

// Package inspect tells what a volume of the cache server holds and what will be deleted from it, when and why. It only
// reads, so the volume may be in use, mounted read-only, or have been filled by a stock registry.
package inspect

import (
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/cacheserver/evict"
)

// Report is what a volume holds. As JSON it is a stable format: fields may be added. Times are in UTC with a precision
// of seconds (RFC 3339); those that are not known are left out. Sizes are in bytes.
type Report struct {
	// Root is the folder, as it was given.
	Root string `json:"root"`
	// Time is the moment that the report is about.
	Time   time.Time `json:"time"`
	Policy Policy    `json:"policy"`
	// Volume is null where it could not be measured; then nothing is expected to be evicted for space.
	Volume *Volume `json:"volume"`
	Totals Totals  `json:"totals"`
	// Images are sorted by repository, then by their first tag, those without tags last, then by digest.
	Images []Image `json:"images"`
	// Others are what belongs to no image, sorted by kind (as the kinds are listed), then by last use, the oldest first,
	// then by path.
	Others []Other `json:"others"`
}

// Policy is what the evictions of the report follow from.
type Policy struct {
	// TTLSeconds is the time since its last use after which an object is deleted. 0: nothing is ever deleted.
	TTLSeconds           int64 `json:"ttlSeconds"`
	HighWatermarkPercent int   `json:"highWatermarkPercent"`
	LowWatermarkPercent  int   `json:"lowWatermarkPercent"`
}

// Volume is how full the volume is, by everything on it. What only the superuser may fill is no part of it.
type Volume struct {
	UsedBytes  int64 `json:"usedBytes"`
	LimitBytes int64 `json:"limitBytes"`
	FreeBytes  int64 `json:"freeBytes"`
	// UsedPercent is from 0 to 100.
	UsedPercent float64 `json:"usedPercent"`
}

// Totals counts everything once, however many images share it.
type Totals struct {
	// Objects are blobs and manifests, whole or not, with or without an image.
	Objects   int   `json:"objects"`
	SizeBytes int64 `json:"sizeBytes"`
	Images    int   `json:"images"`
	// Repositories are those with an image.
	Repositories int `json:"repositories"`
	// Tags are those that name an image.
	Tags                int   `json:"tags"`
	UnfinishedSizeBytes int64 `json:"unfinishedSizeBytes"`
	// GoingObjects and GoingSizeBytes are what the server deletes with its next check.
	GoingObjects   int   `json:"goingObjects"`
	GoingSizeBytes int64 `json:"goingSizeBytes"`
	// OldestUse is the last use of the object that was not used for longest.
	OldestUse time.Time `json:"oldestUse,omitzero"`
	// LastUsesRecorded is when a server recorded last uses; a server does so every five minutes and when it ends. For
	// objects that it did not know then, and for all where this is missing, the times of the files count.
	LastUsesRecorded time.Time `json:"lastUsesRecorded,omitzero"`
}

// Eviction is what is to be expected for an object.
type Eviction struct {
	// Reason is "unreferenced", "expired", "least-recently-used", or "" for what outlives the next eviction.
	Reason evict.Reason `json:"reason"`
	// Now: the server deletes it with its next check. A reason without it is always "least-recently-used", and means: as
	// soon as the volume reaches the high watermark.
	Now bool `json:"now"`
	// Rank is its place in the order in which all objects go, from 1. 0: it never goes.
	Rank int `json:"rank"`
	// Expires is its last use plus the TTL.
	Expires time.Time `json:"expires,omitzero"`
}

// Count says how many different objects are needed, and are there.
type Count struct {
	Present int `json:"present"`
	// Referenced includes the manifest itself. What a manifest that is not there refers to is not known and not counted.
	Referenced int `json:"referenced"`
}

// Image is a manifest or an index with all that it refers to. The manifests of an index are images of their own only if
// they have a tag.
type Image struct {
	Repository string        `json:"repository"`
	Tags       []string      `json:"tags"`
	Digest     digest.Digest `json:"digest"`
	MediaType  string        `json:"mediaType"`
	// SizeBytes is the sum of what is present. What images share counts in each of them.
	SizeBytes int64 `json:"sizeBytes"`
	// Objects: present is what the repository can serve without the upstream, so its content is there, has the size that
	// is asked for, and is linked in the repository.
	Objects Count `json:"objects"`
	// LastUse is when the manifest was last asked for, by tag or digest. Nodes that have the layers ask for no more.
	LastUse time.Time `json:"lastUse"`
	// Eviction is that of the manifest.
	Eviction Eviction `json:"eviction"`
	// Parts is what is going of the other present objects.
	Parts Parts `json:"parts"`
	// Manifests are those that an index refers to, in its order.
	Manifests []Manifest `json:"manifests,omitempty"`
}

// Parts is what is going of an image beside its manifest.
type Parts struct {
	// Objects counts those with a reason, and SizeBytes is their size.
	Objects   int   `json:"objects"`
	SizeBytes int64 `json:"sizeBytes"`
	// First is the one that goes first, null if Objects is 0.
	First *Part `json:"first"`
}

// Part is an object of an image.
type Part struct {
	Digest   digest.Digest `json:"digest"`
	Eviction Eviction      `json:"eviction"`
}

// Manifest is an entry of an index.
type Manifest struct {
	Digest digest.Digest `json:"digest"`
	// Platform is "os/architecture" or "os/architecture/variant", "" where the index does not tell.
	Platform  string `json:"platform"`
	SizeBytes int64  `json:"sizeBytes"`
	Objects   Count  `json:"objects"`
	// LastUse and Eviction are those of the manifest, left out where it is not there.
	LastUse  time.Time `json:"lastUse,omitzero"`
	Eviction Eviction  `json:"eviction,omitzero"`
}

// Kind is what something is that belongs to no image.
type Kind string

// Kinds.
const (
	// Broken: a file that cannot be read or does not hold what it should. Nothing is served from it.
	Broken Kind = "broken"
	// Links: links whose content is not there.
	Links Kind = "links"
	// Content: blobs or manifests that no image refers to, linked in a repository or not.
	Content Kind = "content"
	// Incomplete: a download that goes on or was interrupted.
	Incomplete Kind = "unfinished"
)

// Other is something that belongs to no image.
type Other struct {
	Kind Kind `json:"kind"`
	// Path is relative to the root. For links it is one of them.
	Path string `json:"path"`
	// Digest is left out where it is not known.
	Digest    digest.Digest `json:"digest,omitempty"`
	SizeBytes int64         `json:"sizeBytes"`
	// LastUse is when it was used, for something unfinished when it was written.
	LastUse time.Time `json:"lastUse,omitzero"`
	// Links are what names it.
	Links []Link `json:"links,omitempty"`
	// Note says what is wrong, or what becomes of it.
	Note     string   `json:"note"`
	Eviction Eviction `json:"eviction"`
}

// Link is what names content in a repository.
type Link struct {
	// Kind is "layer", "revision" (a manifest) or "tag" (the name of a manifest, now or before).
	Kind       string `json:"kind"`
	Repository string `json:"repository"`
	Tag        string `json:"tag,omitempty"`
}
