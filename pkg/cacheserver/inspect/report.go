// SPDX-License-Identifier: Apache-2.0

// Package inspect reports the content of a volume of the cache server, and which content will be evicted from it, when
// and why. It only reads the volume, which may be in use, may be mounted read-only, and may be that of a stock registry.
package inspect

import (
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/cacheserver/evict"
)

// Report is the content of a volume. Its JSON format is stable: fields may be added. Times are in UTC with a precision of
// seconds (RFC 3339); unknown times are omitted. Sizes are in bytes.
type Report struct {
	// Root is the directory of the volume, as in the request.
	Root string `json:"root"`
	// Time is the time of the report.
	Time   time.Time `json:"time"`
	Policy Policy    `json:"policy"`
	// Volume is null if the file system cannot be measured. The report then contains no eviction for its watermarks.
	Volume *Volume `json:"volume"`
	Totals Totals  `json:"totals"`
	// Images are sorted by repository, then by their first tag, those without tags last, then by digest.
	Images []Image `json:"images"`
	// Orphans are objects and files that belong to no image. They are sorted by kind (in the order of the constants), then by
	// last use, then by path.
	Orphans []Orphan `json:"orphans"`
}

// Policy contains the limits for the evictions of the report.
type Policy struct {
	// TTLSeconds is the time after the last use of an object at which it expires. 0 disables all eviction.
	TTLSeconds           int64 `json:"ttlSeconds"`
	HighWatermarkPercent int   `json:"highWatermarkPercent"`
	LowWatermarkPercent  int   `json:"lowWatermarkPercent"`
	// SizeBytes is the size that the cache may use, 0 if only the file system limits it.
	SizeBytes int64 `json:"sizeBytes,omitempty"`
}

// Volume is the usage of the file system by all files on it. Space that only the superuser can use is excluded.
type Volume struct {
	UsedBytes  int64 `json:"usedBytes"`
	LimitBytes int64 `json:"limitBytes"`
	FreeBytes  int64 `json:"freeBytes"`
	// UsedPercent is from 0 to 100.
	UsedPercent float64 `json:"usedPercent"`
}

// Totals count each object once, independently of the number of images that share it.
type Totals struct {
	// Objects is the number of blobs and manifests, corrupt ones and those without an image included.
	Objects   int   `json:"objects"`
	SizeBytes int64 `json:"sizeBytes"`
	Images    int   `json:"images"`
	// Repositories is the number of repositories with an image.
	Repositories int `json:"repositories"`
	// Tags is the number of tags that point to an image.
	Tags                int   `json:"tags"`
	UnfinishedSizeBytes int64 `json:"unfinishedSizeBytes"`
	// EvictableObjects and EvictableSizeBytes are the objects that the server evicts with its next check.
	EvictableObjects   int   `json:"evictableObjects"`
	EvictableSizeBytes int64 `json:"evictableSizeBytes"`
	// OldestUse is the last use of the least recently used object.
	OldestUse time.Time `json:"oldestUse,omitzero"`
	// LastUsesRecorded is the time at which a server recorded last uses. A server does so every five minutes and at its end.
	// For objects without a record, the times of the files are used.
	LastUsesRecorded time.Time `json:"lastUsesRecorded,omitzero"`
}

// Eviction is the expected eviction of an object.
type Eviction struct {
	// Reason is "unreferenced", "expired" or "least-recently-used". It is empty if the object survives the next eviction.
	Reason evict.Reason `json:"reason"`
	// Now is true if the server evicts the object with its next check. If it is false, a reason is always
	// "least-recently-used", and means: as soon as the volume reaches the high watermark.
	Now bool `json:"now"`
	// Rank is the position in the eviction order of all objects, from 1. 0: the object is not evicted.
	Rank int `json:"rank"`
	// Expires is the last use plus the TTL.
	Expires time.Time `json:"expires,omitzero"`
}

// Count is the number of different objects of an image.
type Count struct {
	Present int `json:"present"`
	// Referenced includes the manifest itself. It excludes references of manifests that are not stored, which are unknown.
	Referenced int `json:"referenced"`
}

// Image is a manifest or an index with all content that it refers to. The manifests of an index are separate images only
// if they have a tag.
type Image struct {
	Repository string        `json:"repository"`
	Tags       []string      `json:"tags"`
	Digest     digest.Digest `json:"digest"`
	MediaType  string        `json:"mediaType"`
	// SizeBytes is the size of the present objects. Objects that images share are included in each of them.
	SizeBytes int64 `json:"sizeBytes"`
	// Objects: an object is present if the repository can serve it without the upstream. Its content is stored, has the size
	// in the manifest, and is linked in the repository.
	Objects Count `json:"objects"`
	// LastUse is the last request of the manifest, by tag or digest. Nodes with all layers request nothing else.
	LastUse time.Time `json:"lastUse"`
	// Eviction is the eviction of the manifest.
	Eviction Eviction `json:"eviction"`
	// Layers summarises the evictions of the other present objects.
	Layers Layers `json:"layers"`
	// Manifests are the manifests of an index, in its order.
	Manifests []Manifest `json:"manifests,omitempty"`
}

// Layers summarises the objects of an image that have an eviction reason: layers, configs and, of an index, manifests. The
// manifest of the image itself is excluded.
type Layers struct {
	// Objects is the number of these objects, and SizeBytes is their size.
	Objects   int   `json:"objects"`
	SizeBytes int64 `json:"sizeBytes"`
	// First is the object that is evicted first, null if Objects is 0.
	First *Layer `json:"first"`
}

// Layer is an object of an image.
type Layer struct {
	Digest   digest.Digest `json:"digest"`
	Eviction Eviction      `json:"eviction"`
}

// Manifest is an entry of an index.
type Manifest struct {
	Digest digest.Digest `json:"digest"`
	// Platform is "os/architecture" or "os/architecture/variant", empty if the index does not contain it.
	Platform  string `json:"platform"`
	SizeBytes int64  `json:"sizeBytes"`
	Objects   Count  `json:"objects"`
	// LastUse and Eviction are those of the manifest. They are omitted if it is not stored.
	LastUse  time.Time `json:"lastUse,omitzero"`
	Eviction Eviction  `json:"eviction,omitzero"`
}

// Kind is the kind of an orphan.
type Kind string

// Kinds.
const (
	// Corrupt: a file that cannot be read or has invalid content. It is not served.
	Corrupt Kind = "corrupt"
	// Links: links to missing content.
	Links Kind = "links"
	// Content: blobs or manifests that no image refers to, with or without a link.
	Content Kind = "content"
	// Unfinished: a download in progress or a partial download.
	Unfinished Kind = "unfinished"
)

// Orphan is an object or a file that belongs to no image.
type Orphan struct {
	Kind Kind `json:"kind"`
	// Path is relative to the root. For links it is the path of one of them.
	Path string `json:"path"`
	// Digest is omitted if it is unknown.
	Digest    digest.Digest `json:"digest,omitempty"`
	SizeBytes int64         `json:"sizeBytes"`
	// LastUse is the last use, for unfinished downloads the last write.
	LastUse time.Time `json:"lastUse,omitzero"`
	// Links are the links to the content.
	Links []Link `json:"links,omitempty"`
	// Note is the reason, or the expected deletion.
	Note     string   `json:"note"`
	Eviction Eviction `json:"eviction"`
}

// Link is a link to content in a repository.
type Link struct {
	// Kind is "layer", "revision" (a manifest) or "tag" (a tag that points to the manifest, or has pointed to it).
	Kind       string `json:"kind"`
	Repository string `json:"repository"`
	Tag        string `json:"tag,omitempty"`
}
