"""Draws training examples on the host: the same on every backend, and from any step on."""

import keras
import numpy as np

from keras_diffusion import arguments
from keras_diffusion.generation.size_ids import added_vectors
from keras_diffusion.networks.timesteps import timestep_embedding
from keras_diffusion.sampling import noise
from keras_diffusion.sampling.schedules import noise_schedule
from keras_diffusion.training import losses
from keras_diffusion.training.buckets import unlike
from keras_diffusion.training.encoding import encode_texts, sources
from keras_diffusion.training.folder import counterparts, records

# Purposes of random numbers, see `noise.uniform`.
ORDER, CHOICES, POSTERIOR, NOISE, OFFSET, PERTURBATION, BUCKET = range(1, 8)
CLASSES = 16  # added to them for class images
MOST_BUCKETS = 100
DAMAGED = ("error", "skip")


class Examples(keras.utils.PyDataset):
    """Draws batches of noisy latents, their captions and what the network should predict.

    Images, captions and latents are read and encoded once and kept in memory, so the image encoder has no part in a
    step. Order, mirroring, timesteps and noise depend on the seed and the number of the example alone.

    Args:
        model: The `StableDiffusion` whose encoders, tokenizer and noise schedule are used.
        images: A list of `folder.Record`.
        classes: More images, each batch ends with as many of them (prior preservation, Ruiz et al. 2023,
            arXiv:2208.12242, section 3.2).
        conditions: What a ControlNet sees with each of `images`, a list of images; or None.
        text: "context", or "tokens" where the text encoder takes part in the training.
        tokenizer: What makes the tokens; None takes the model's.
        size: (height, width) to which images are scaled and cut around their middle; None takes the model's.
        buckets: Number of sizes at most. If it is more than 1, images of other shapes get sizes of their own, of about
            the same area as `size`, so that less of them is cut off. All images of a batch have one size, and a
            compiled step is compiled once for each size.
        batch_size: Number of `images` in a batch.
        steps: Number of batches of an epoch; None takes as many as show every image once.
        first_step: Number of the first batch, to go on with a training that was stopped.
        seed: Where all random numbers come from, an int from 0 to 2**63 - 1.
        flip: Whether half of the examples are mirrored.
        caption_dropout: Share of the captions that become "", for classifier-free guidance (Ho and Salimans 2022).
        snr_gamma: γ of `losses.min_snr_weights`, usually 5; None weights all timesteps alike.
        snr_floor: The least of those weights.
        noise_offset: Share of noise that is alike in all positions of a channel; 0.0357 made SDXL.
        input_perturbation: Share of noise in the input that the target does not know (Ning et al. 2023); 0.1 is usual.
        prior_weight: Weight of the loss of `classes`.
        sample_latents: Whether latents are drawn from the posterior of the image encoder, or are its mean.
        damaged: What becomes of an image that cannot be read: "error", or "skip" with a warning.
        **options: Options of `keras.utils.PyDataset`.

    Raises:
        TypeError, ValueError: If an argument is wrong, or an image cannot be read; it is named.

    Attributes:
        epoch: Number of the epoch that is being drawn. `Trainer.fit` sets it; None has batches of unlike sizes drawn,
            so that Keras learns which sides of an array can change.
        sizes: A list of the (height, width) that latents have.
        texts: What captions become, (m, 77, width) or (m, 77).
    """

    def __init__(
        self,
        model,
        images,
        classes=(),
        conditions=None,
        text="context",
        tokenizer=None,
        size=None,
        buckets=1,
        batch_size=1,
        steps=None,
        first_step=0,
        seed=0,
        flip=False,
        caption_dropout=0.0,
        snr_gamma=None,
        snr_floor=0.0,
        noise_offset=0.0,
        input_perturbation=0.0,
        prior_weight=1.0,
        sample_latents=True,
        damaged="error",
        **options,
    ):
        super().__init__(**options)
        self._batch_size = arguments.whole_number("batch_size", batch_size, 1, arguments.LARGEST_BATCH)
        self._first_step = arguments.whole_number("first_step", first_step, 0, 2**40)
        self._seed = noise.seeds(seed, 1)[0]
        self._flip = arguments.boolean("flip", flip)
        self._dropout = arguments.number("caption_dropout", caption_dropout, 0, 1)
        self._offset = arguments.number("noise_offset", noise_offset, 0, 1)
        self._perturbation = arguments.number("input_perturbation", input_perturbation, 0, 1)
        self._prior_weight = arguments.number("prior_weight", prior_weight, 0, 1e6)
        self._sample = arguments.boolean("sample_latents", sample_latents)
        arguments.choice("text", text, ("context", "tokens"))
        arguments.choice("damaged", damaged, DAMAGED)
        if snr_gamma is not None:
            arguments.number("snr_gamma", snr_gamma, 1e-3, 1e6)
        if conditions is not None and classes:
            raise ValueError("A ControlNet is trained without class images. Received: `conditions` and `classes`")
        if conditions is not None and len(conditions) != len(images):
            raise ValueError(f"Give one condition for each of {len(images)} images. Received: {len(conditions)}")

        if arguments.whole_number("buckets", buckets, 1, MOST_BUCKETS) > 1 and classes:
            raise ValueError(f"Class images have one size, so they take `buckets=1`. Received: {buckets=}")
        size = size or (model.img_height, model.img_width)
        size = tuple(model.side(name, side) for name, side in zip(("height", "width"), size, strict=True))
        captions = ["", *sorted({caption for record in (*images, *classes) for caption in record.captions})]
        self._sources = [  # those of the images, one for each size; and those of the classes
            sources(model, group, shown, captions, size, buckets, flip, damaged)
            for group, shown in ((images, conditions), (classes, None))
            if group
        ]
        self.sizes = [(source.means.shape[2], source.means.shape[3]) for source in self._sources[0]]
        count = sum(len(source.texts) for source in self._sources[0])
        least = min(2, len(self.sizes))  # Keras learns from the first two batches which sides can change
        self._steps = arguments.whole_number("steps", steps or max(least, -(-count // batch_size)), least, 10**9)
        self._text, (self.texts, self._pooled) = text, encode_texts(model, captions, text, tokenizer)
        self._id_width = model.architecture.diffusion_model.id_width
        self.epoch = 0

        schedule = model.schedule.get("alphas_cumprod")
        self._alphas_cumprod = noise_schedule() if schedule is None else schedule
        self._prediction_type = model.architecture.prediction_type
        self._embeddings = timestep_embedding(
            np.arange(len(self._alphas_cumprod)), model.architecture.diffusion_model.frequencies
        )
        self._weights = np.ones(len(self._alphas_cumprod), "float32")
        if snr_gamma is not None:
            self._weights = losses.min_snr_weights(self._prediction_type, self._alphas_cumprod, snr_gamma, snr_floor)

    @classmethod
    def from_folder(
        cls, model, folder, caption=None, class_folder=None, class_caption=None, condition_folder=None, **options
    ):
        """Reads the images and captions of a folder, see `folder.records`, and of those that go with it.

        Args:
            model: The `StableDiffusion`.
            folder: The folder.
            caption: The caption of images that have none of their own.
            class_folder: A folder of class images, or None.
            class_caption: Their caption.
            condition_folder: A folder with what a ControlNet sees, an image of the same name for each image; or None.
            **options: Arguments of the class.
        """
        classes = records(class_folder, class_caption) if class_folder is not None else ()
        images = records(folder, caption)
        conditions = counterparts(images, condition_folder) if condition_folder is not None else None
        return cls(model, images, classes, conditions, **options)

    @property
    def num_batches(self):
        return self._steps

    def __len__(self):
        return self._steps

    def __getitem__(self, index):
        """Returns batch `index` of the epoch: inputs for `Trainer.call`, targets, and the weight of each loss."""
        latents, noise_, text, timesteps, perturbation, ids, *conditions = self.drawn(self.number(index))
        alpha, sigma = losses.levels(self._alphas_cumprod[timesteps])
        inputs = {
            "latent": losses.noisy(latents, noise_ + np.float32(self._perturbation) * perturbation, alpha, sigma),
            "timestep_embedding": self._embeddings[timesteps],
            self._text: self.texts[text],
        }
        if self._pooled is not None:
            rows = zip(self._pooled[text], ids, strict=True)
            inputs["added"] = np.concatenate([added_vectors(row[None], own, self._id_width) for row, own in rows])
        if conditions:
            inputs["image"] = conditions[0]
        target = losses.target(self._prediction_type, latents, noise_, alpha, sigma)
        return inputs, target, self._weights[timesteps] * self._share(len(latents))

    def number(self, index):
        """Returns the number of batch `index` of the epoch among all."""
        return self._first_step + (self.epoch or 0) * self._steps + index

    def drawn(self, step):
        """Draws a batch: latents, noise, rows of texts, timesteps, perturbations, size ids, and conditions if any."""
        examples = [example for which in range(len(self._sources)) for example in self._drawn(which, step)]
        return [np.stack(column) for column in zip(*examples, strict=True)]

    def _share(self, count):
        """Weighs the halves of a batch so that each loss is a mean over its own half."""
        halves = [1.0, self._prior_weight][: len(self._sources)]
        return np.repeat(np.float32(halves) * len(halves), count // len(halves))

    def _drawn(self, which, step):
        """Draws the examples of a step, `which` is 0 for images and 1 for classes.

        As often as a source has images, the step is one of its steps: in as many steps as there are images, each image
        is drawn `batch_size` times.
        """
        own = self._sources[which]
        counts = [len(source.texts) for source in own]
        turn, position = divmod(step, sum(counts))
        order = np.argsort(noise.uniform(self._seed, turn, (sum(counts),), BUCKET), kind="stable")
        owners = np.repeat(np.arange(len(counts)), counts)[order]
        chosen = owners[position]
        if self.epoch is None:
            chosen = self.sizes.index(unlike(self.sizes)[step % 2])
        earlier = int((owners[:position] == chosen).sum())
        place = turn * counts[chosen] + earlier  # the number of this step among its own
        return [
            self._example(which, own[chosen], place * self._batch_size + i, step * self._batch_size + i)
            for i in range(self._batch_size)
        ]

    def _timestep(self, choice):
        """Turns a number from 0 to 1 into a timestep."""
        return int(choice * len(self._alphas_cumprod))

    def _example(self, which, source, place, number):
        """Draws one example of one source: an image by its place in their order, and random numbers of its own."""
        purpose = which * CLASSES
        epoch, position = divmod(place, len(source.texts))
        order = noise.uniform(self._seed, epoch, (len(source.texts),), ORDER + purpose)
        row = np.argsort(order, kind="stable")[position]
        choices = noise.uniform(self._seed, number, (4,), CHOICES + purpose)
        timestep = self._timestep(choices[0])
        variant = int(self._flip and choices[1] < 0.5)
        texts = source.texts[row]
        text = 0 if choices[2] < self._dropout else texts[int(choices[3] * len(texts))]
        shape = source.means.shape[2:]

        def normal(kind, shape=shape):
            return noise.normal(self._seed, number, shape, kind + purpose)

        latents, fresh = source.means[row, variant], normal(NOISE)
        if self._sample:
            latents = latents + source.deviations[row, variant] * normal(POSTERIOR)
        if self._offset:
            fresh = fresh + np.float32(self._offset) * normal(OFFSET, (1, 1, shape[-1]))
        perturbation = normal(PERTURBATION) if self._perturbation else np.zeros((1, 1, 1), "float32")
        conditions = () if source.conditions is None else (source.conditions[row, variant],)
        return latents, fresh, text, timestep, perturbation, source.ids[row], *conditions
