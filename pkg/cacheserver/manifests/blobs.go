// SPDX-License-Identifier: Apache-2.0

package manifests

import (
	"context"
	"encoding/hex"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/registry-cache/extension/pkg/cacheserver/answers"
	"github.com/registry-cache/extension/pkg/cacheserver/background"
	"github.com/registry-cache/extension/pkg/cacheserver/lru"
	"github.com/registry-cache/extension/pkg/oci"
)

const (
	// maxSizes and maxOwners limit the number of blobs with a known size and with a known manifest. An entry has about 150 and
	// 250 bytes, so both need at most 20 MiB. Thousands of images have fewer blobs.
	maxSizes  = 1 << 16
	maxOwners = 1 << 15
	// importAgainAfter is the time in which a manifest is requested at most once for missing blobs. It covers the parallel
	// downloads of one pull.
	importAgainAfter = time.Minute
	// maxImportsSize limits the memory for requested manifests, in bytes.
	maxImportsSize = 1 << 20
)

// sum is a SHA-256 digest. It needs less than half of the memory of its text.
type sum [32]byte

// sumOf returns the digest as bytes. d must be valid by oci.ParseDigest.
func sumOf(d digest.Digest) sum {
	var s sum
	// The length and the characters were checked by the parser of the request or of the manifest.
	_, _ = hex.Decode(s[:], []byte(d.Encoded()))
	return s
}

func (s sum) digest() digest.Digest {
	return digest.NewDigestFromEncoded(digest.SHA256, hex.EncodeToString(s[:]))
}

// blobSize is the size of a blob, in bytes.
type blobSize struct {
	size      int64
	verified  bool // the content was read
	ambiguous bool // manifests contradict each other
}

// maxNesting limits the indexes around a manifest for which an answer about a tag is looked up. Real images have one.
const maxNesting = 4

// ownerKey is a blob, or a manifest of an index.
type ownerKey struct {
	repository string
	content    sum
}

// blobs contains the references of manifests to blobs.
type blobs struct {
	imports *answers.Table[manifestKey, struct{}]
	request func(ctx context.Context, key manifestKey) error

	mu     sync.Mutex // guards sizes and owners
	sizes  *lru.Map[sum, blobSize]
	owners *lru.Map[ownerKey, sum] // the manifest that was read last
}

func newBlobs(group *background.Group, u Upstream) *blobs {
	return &blobs{
		imports: answers.New(group, answers.Options[manifestKey, struct{}]{
			Kind:      "import",
			Lifetimes: answers.Lifetimes{Fresh: importAgainAfter, FreshNegative: importAgainAfter},
			MaxSize:   maxImportsSize,
			Size:      func(k manifestKey, _ struct{}) int64 { return int64(len(k.repository) + len(k.digest)) },
		}),
		request: func(ctx context.Context, key manifestKey) error {
			_, err := u.Manifest(ctx, key.repository, oci.Reference{Digest: key.digest})
			return err
		},
		sizes:  lru.New(maxSizes, func(sum, blobSize) int64 { return 1 }),
		owners: lru.New(maxOwners, func(ownerKey, sum) int64 { return 1 }),
	}
}

// record stores the references of a manifest. It ignores a manifest with an invalid reference.
func (b *blobs) record(manifest manifestKey, content []byte) {
	for _, err := range oci.References(content) {
		if err != nil {
			return
		}
	}
	owner := sumOf(manifest.digest)
	for r, err := range oci.References(content) {
		if err != nil {
			return // not possible, see above
		}
		b.add(ownerKey{manifest.repository, sumOf(r.Digest)}, owner, r)
	}
}

func (b *blobs) add(key ownerKey, owner sum, r oci.Descriptor) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.owners.Put(key, owner)
	known, exists := b.sizes.Get(key.content)
	switch {
	case !exists:
		known = blobSize{size: r.Size}
	case !known.verified && known.size != r.Size:
		known.ambiguous = true
	}
	b.sizes.Put(key.content, known)
}

func (b *blobs) expectedSize(d digest.Digest) (int64, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	known, exists := b.sizes.Get(sumOf(d))
	return known.size, exists && (known.verified || !known.ambiguous)
}

func (b *blobs) verified(d digest.Digest, size int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.sizes.Put(sumOf(d), blobSize{size: size, verified: true})
}

// requestOwner requests the manifest that names a blob, see Manifests.Import.
func (b *blobs) requestOwner(ctx context.Context, repository string, blob digest.Digest) (requested bool, err error) {
	owner, known := b.owner(ownerKey{repository, sumOf(blob)})
	if !known {
		return false, nil
	}
	key := manifestKey{repository, owner.digest()}
	if _, err := b.imports.Get(ctx, key, func(ctx context.Context) (struct{}, error) { return struct{}{}, b.request(ctx, key) }); err != nil {
		return false, err
	}
	return true, nil
}

// ownersOf returns the manifest that names a blob, followed by the indexes that contain it.
func (b *blobs) ownersOf(repository string, blob digest.Digest) []digest.Digest {
	var all []digest.Digest
	content := sumOf(blob)
	for range maxNesting {
		owner, known := b.owner(ownerKey{repository, content})
		if !known {
			break
		}
		all = append(all, owner.digest())
		content = owner
	}
	return all
}

func (b *blobs) owner(key ownerKey) (sum, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.owners.Get(key)
}
