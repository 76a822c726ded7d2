// SPDX-License-Identifier: Apache-2.0

package httpapi

import "strings"

// Kinds of requests, also as a label of metrics.
const (
	kindPing      = "ping"
	kindManifest  = "manifest"
	kindBlob      = "blob"
	kindTags      = "tags"
	kindReferrers = "referrers"
	kindOther     = "other"
)

// target is the content that a path names. Repository and reference are not validated.
type target struct {
	kind, repository, reference string
}

// parsePath reads a path from its end, because a repository may have components such as "blobs".
func parsePath(path string) target {
	rest, versioned := strings.CutPrefix(path, "/v2")
	if versioned && (rest == "" || rest == "/") {
		return target{kind: kindPing}
	}
	rest, separated := strings.CutPrefix(rest, "/")
	last := strings.LastIndexByte(rest, '/')
	if !versioned || !separated || last < 0 {
		return target{kind: kindOther}
	}
	front, reference := rest[:last], rest[last+1:]
	if repository, ok := strings.CutSuffix(front, "/manifests"); ok {
		return target{kindManifest, repository, reference}
	}
	if repository, ok := strings.CutSuffix(front, "/blobs"); ok {
		return target{kindBlob, repository, reference}
	}
	if repository, ok := strings.CutSuffix(front, "/referrers"); ok {
		return target{kindReferrers, repository, reference}
	}
	if repository, ok := strings.CutSuffix(front, "/tags"); ok && reference == "list" {
		return target{kind: kindTags, repository: repository}
	}
	return target{kind: kindOther}
}
